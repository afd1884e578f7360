"""Weights that are on the service as the difference to those that they were trained from: small, bit-exact, and under
every promise that a whole file has."""

from __future__ import annotations

import hashlib
import json
import random
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest

from spin_core.errors import BadInput, StoreError
from spin_core.store import delta, leases
from spin_core.store.keys import payload
from spin_core.store.s3 import deltas, verify
from spin_core.store.s3 import gc as remote_gc
from spin_core.store.s3.remote import RemoteStore
from tests.faults.s3.test_clearing import digest_of
from tests.faults.s3.test_damaged import harm
from tests.faults.store.battery import assert_right, compute
from tests.faults.store.kinds import Step

COUNT = 600_000
TOKENIZER = b'{"model": {}}' * 500


def weights(count: int = COUNT) -> bytes:
    """A safetensors file with one tensor of random bfloat16 numbers."""
    head = json.dumps({"w": {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + np.random.default_rng(0).bytes(2 * count)


def trained(data: bytes, t: int) -> bytes:
    """After an iteration: one weight in fifty is the next number."""
    bits = np.frombuffer(data, "<u2").copy()
    bits[np.random.default_rng(t).integers(200, len(bits), COUNT // 50)] += 1
    return bits.tobytes()


def models(iterations: int, first: bytes | None = None) -> list[Step]:
    """θ_0, and each θ_t made from the one before."""
    data = first or weights()
    steps = [Step(payload("import_model", 1, {"n": 0}, {"source": "a" * 64}), {"model.safetensors": data})]
    for t in range(1, iterations + 1):
        data = trained(data, t)
        files = {"model.safetensors": data, "tokenizer.json": TOKENIZER, "config.json": b"{}"}
        steps.append(Step(payload("finetune", 1, {"t": t}, {"model": digest_of(steps[-1])}), files))
    return steps


def sha(step: Step) -> str:
    return hashlib.sha256(step.files["model.safetensors"]).hexdigest()


def keys(store: RemoteStore, below: str) -> list[str]:
    return [stat.key for stat in store.objects.listed(below)]


@pytest.fixture
def unused(at, monkeypatch):
    """Opens a store that no lease says is in use."""
    monkeypatch.setattr(leases.Lease, "_begin", lambda self: None)
    return at


def test_a_run_is_one_model_and_its_differences(at, proxy):
    """Catches a store that sends each iteration's weights whole, a second machine that gets other bytes, or one that
    fetches whole models although it has a near one."""
    first, steps = at("a"), models(4)
    for step in steps:
        compute(first, step)
    whole = {sha(step): step for step in steps}
    assert [key for key in keys(first, "files/") if key[6:] in whole] == [f"files/{sha(steps[0])}"]
    links = deltas.links(first.objects.listed(deltas.FOLDER))
    assert {(link.base, link.new) for own in links.values() for link in own} == {
        (sha(a), sha(b)) for a, b in pairwise(steps)
    }
    size = len(steps[0].files["model.safetensors"])
    assert sum(link.stat.size for own in links.values() for link in own) < 0.6 * size  # random bits: no real model's
    assert verify.verify(first) == [] and verify.verify(first, deep=False) == []

    other = at("b")
    proxy.forget()
    assert_right(other.lookup("finetune", steps[4].key), steps[4].files)
    fetched = [one.path for one in proxy.requests if one.method == "GET" and "/deltas/" in one.path]
    assert len(set(fetched)) == 4 and other.notes == []
    assert [path.name for path in (other.root / "trees").iterdir()] == [digest_of(steps[4])]

    near = at("c")
    assert_right(near.lookup("finetune", steps[2].key), steps[2].files)
    proxy.forget()
    assert_right(near.lookup("finetune", steps[4].key), steps[4].files)
    read = {one.path.rpartition("/")[2] for one in proxy.requests if one.method == "GET"}
    assert sha(steps[0]) not in read and sum(name.count(".") == 2 for name in read) == 2

    late = at("d", create=False, read_only=True)
    record = late.lookup("finetune", steps[3].key)
    assert record and not record.path.exists() and late.input_tree(record.digest) == record.path
    assert_right(record, steps[3].files)


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
@pytest.mark.parametrize("what", ["whole", "first delta", "own delta"])
def test_damage_is_a_miss_and_heals(at, what, how):
    """Catches weights restored from damaged parts, a step that can never be computed again, and a damage that verify
    does not see."""
    first, steps = at("a"), models(3)
    for step in steps:
        compute(first, step)
    links = deltas.links(first.objects.listed(deltas.FOLDER))
    key = {
        "whole": f"files/{sha(steps[0])}",
        "first delta": links[sha(steps[1])][0].stat.key,
        "own delta": links[sha(steps[3])][0].stat.key,
    }[what]
    harm(first.objects, key, how, random.Random(f"{what} {how}"))
    assert verify.verify(first), "verify does not see it"
    other, ran = at("b"), []
    assert_right(compute(other, steps[3], ran), steps[3].files)
    assert ran == [steps[3].key] and any("counts as not there" in note for note in other.notes)
    third = at("c")
    assert_right(third.lookup("finetune", steps[3].key), steps[3].files)
    for step in steps:  # the rest heals as it is looked up by who has nothing
        assert_right(compute(third, step), step.files)
    fourth = at("d")
    for step in steps:
        assert_right(fourth.lookup(step.stage, step.key), step.files)
    assert fourth.notes == [] and verify.verify(fourth) == []


def test_gc_keeps_what_a_delta_hangs_on(unused):
    """Catches a gc that takes θ_0's file with its record, although θ_3 is a difference to it in the end."""
    store, steps = unused("a"), models(3)
    records = [compute(store, step) for step in steps]
    lone = Step(
        payload("finetune", 1, {"t": 99}, {"model": records[3].digest}), {"model.safetensors": trained(weights(), 7)}
    )
    compute(store, lone)
    store.link_run("run-1", {"best": records[3].digest})
    done = remote_gc.gc(store, keep_runs=0)
    assert done.records == 4 and [record.digest for record in store.records()] == [records[3].digest]
    assert len(keys(store, deltas.FOLDER)) == 3 and f"files/{sha(steps[0])}" in keys(store, "files/")
    assert_right(unused("b").lookup("finetune", steps[3].key), steps[3].files)
    again = remote_gc.gc(store, keep_runs=0)
    assert (again.records, again.bytes) == (0, 0)
    for link in [one for one in store.objects.listed("runs/")]:
        store.objects.delete(link.key)
    for stat in list(store.objects.listed("records/")):
        store.objects.delete(stat.key)
    with pytest.raises(StoreError, match="records are missing"):
        remote_gc.gc(store)  # a listing without records is not believed


def test_a_whole_file_is_used_in_place_of_its_delta(unused, monkeypatch):
    """Two machines, one of which sends weights whole: gc keeps one of the two, and both read the same."""
    steps = models(1)
    store = unused("a")
    compute(store, steps[0])
    compute(store, steps[1])
    store.objects.put(f"files/{sha(steps[1])}", steps[1].files["model.safetensors"])
    done = remote_gc.gc(store)
    assert done.bytes > 0 and keys(store, deltas.FOLDER) == [] and verify.verify(store) == []
    assert_right(unused("b").lookup("finetune", steps[1].key), steps[1].files)


def test_setting(at, monkeypatch):
    """`SPINLOOP_DELTAS=off` sends whole files, reads both; another value is one sentence."""
    monkeypatch.setenv("SPINLOOP_DELTAS", "off")
    steps, store = models(2), at("a")
    compute(store, steps[0])
    compute(store, steps[1])
    assert keys(store, deltas.FOLDER) == [] and f"files/{sha(steps[1])}" in keys(store, "files/")
    monkeypatch.setenv("SPINLOOP_DELTAS", "on")
    compute(store, steps[2])
    assert len(keys(store, deltas.FOLDER)) == 1
    monkeypatch.setenv("SPINLOOP_DELTAS", "off")
    assert_right(at("b").lookup("finetune", steps[2].key), steps[2].files)
    monkeypatch.setenv("SPINLOOP_DELTAS", "0")
    with pytest.raises(BadInput, match="SPINLOOP_DELTAS=0: neither on nor off"):
        compute(at("c"), models(3)[3])


def test_not_deeper_than_is_read_in_one_pass(at, monkeypatch):
    """The ninth iteration after a whole file is whole again. Catches a run of a year whose last model needs all."""
    monkeypatch.setattr(delta, "DEEPEST", 2)
    store, steps = at("a"), models(4)
    for step in steps:
        compute(store, step)
    wholes = [n for n, step in enumerate(steps) if f"files/{sha(step)}" in keys(store, "files/")]
    assert wholes == [0, 3]
    assert_right(at("b").lookup("finetune", steps[4].key), steps[4].files)


def test_damage_in_the_cache_never_reaches_a_delta(at, tmp_path):
    """The base in the cache has a flipped bit when the next model is sent: that one is sent whole. Catches a delta to
    bytes that nobody has."""
    store, steps = at("a"), models(1)
    record = compute(store, steps[0])
    file = record.path / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[5000] ^= 1
    file.chmod(0o644)
    file.write_bytes(raw)
    compute(store, steps[1])
    assert keys(store, deltas.FOLDER) == [] and f"files/{sha(steps[1])}" in keys(store, "files/")
    assert_right(at("b").lookup("finetune", steps[1].key), steps[1].files)


def test_service_that_goes_away_loses_nothing(at, proxy, monkeypatch):
    """At any request of a publication with a delta the service is gone: the step fails, and the next look-up sends the
    rest. Catches a record whose weights are nowhere."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    steps = models(1)
    compute(at("counted"), steps[0])
    proxy.forget()
    compute(at("counted"), Step({**steps[1].payload, "config": {"t": -1}}, steps[1].files))
    count = len(proxy.requests)
    for point in range(0, count, 3):
        data = trained(steps[0].files["model.safetensors"], 1000 + point)
        step = Step({**steps[1].payload, "config": {"t": 1000 + point}}, {"model.safetensors": data})
        proxy.forget()
        store = at("counted")
        proxy.forget()
        proxy.meddle = lambda one, point=point: 503 if len(proxy.requests) > point else None
        with suppress(StoreError):
            compute(store, step)
        proxy.forget()
        assert_right(compute(at("counted"), step), step.files)
        other = at(f"other {point}")
        assert_right(other.lookup("finetune", step.key), step.files)
        assert other.notes == []
