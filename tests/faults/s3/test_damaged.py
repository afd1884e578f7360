"""Objects that are damaged, cut or gone on the service: a miss that is reported, healed by computing again."""

from __future__ import annotations

import hashlib
import random
from itertools import product

import pytest

from spin_core.store.keys import canonical
from spin_core.store.record import entries
from spin_core.store.s3 import objects, verify
from spin_core.store.s3.objects import Objects
from tests.faults.fault import LEVEL, Fault
from tests.faults.store.battery import PAYLOAD, assert_right, compute
from tests.faults.store.kinds import Step

FILES = {"config.json": b'{"layers": 2}', "weights/model.safetensors": bytes(range(256)) * 64, "empty.txt": b""}
STEP = Step(PAYLOAD, FILES)
KINDS = ("file", "record", "manifest")
HARM = ("flipped", "cut", "gone", "emptied", "grown")
SOME = [("file", "flipped"), ("file", "gone"), ("file", "grown"), ("record", "cut")]
SOME += [("manifest", "flipped")]
DAMAGED = {
    "flipped": Fault("R6", "a bit of an object on S3 flips", night=60, release=300),
    "cut": Fault("R8", "an object on S3 is shorter, longer or empty", night=60, release=300),
    "gone": Fault("R8", "an object on S3 is gone"),
}


def keys(store, kind: str) -> list[str]:
    """The objects of the one step that there is; without the empty file."""
    below = {"file": "files/", "record": "records/", "manifest": "trees/"}[kind]
    return [stat.key for stat in store.objects.listed(below) if stat.size]


def harm(there: Objects, key: str, how: str, rng: random.Random) -> None:
    """What a disk of the service may do, below its own checks."""
    data = there.get(key) or b""
    at = rng.randrange(len(data))
    new = {
        "flipped": data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :],
        "cut": data[:at],
        "emptied": b"",
        "grown": data + b"\n",
        "gone": None,
    }[how]
    there.delete(key) if new is None else there.put(key, new)


def check(at, kind: str, how: str, rng: random.Random) -> None:
    """From an intact store in one machine's cache and the service, through damage, to an intact one again."""
    first = at(f"first {rng.random()}")
    compute(first, STEP)
    key = rng.choice(keys(first, kind))
    harm(first.objects, key, how, rng)
    if (kind, how) != ("record", "gone"):
        assert verify.verify(first), "verify does not see it"

    other = at(f"other {rng.random()}")
    ran: list[str] = []
    assert_right(compute(other, STEP, ran), FILES)
    if kind == "file" or (kind, how) == ("record", "gone"):
        assert ran == [STEP.key]
    if ran and how != "gone":
        assert [n for n in other.notes if "set aside in quarantine/" in n and n.endswith("counts as not there.")]
    if kind == "manifest":
        record = other.lookup(STEP.stage, STEP.key)
        assert at(f"worker {rng.random()}").tree(record.digest).is_dir(), "a stage does not find its input"
    third = at(f"third {rng.random()}")
    assert_right(third.lookup(STEP.stage, STEP.key), FILES)
    assert verify.verify(third) == [], "not healed"
    for stat in list(third.objects.listed("")):
        third.objects.delete(stat.key)


def test_every_object_damaged_in_every_way_is_healed(at):
    """Catches damage on the service that is served, that stops every later run, or that is put right by overwriting."""
    points = list(product(KINDS, HARM)) if LEVEL != "pr" else SOME
    for kind, how in points:
        fault = DAMAGED["gone" if how == "gone" else "flipped" if how == "flipped" else "cut"]
        fault.each([(kind, how)], lambda point: check(at, *point, random.Random(str(point))))
    if LEVEL != "pr":
        for how, fault in DAMAGED.items():
            fault.run(lambda rng, how=how: check(at, rng.choice(KINDS), how, rng))


def test_damaged_input_is_fetched_by_digest_only_when_intact(at):
    """Catches a stage on another machine that reads an input whose bytes are not what its digest says."""
    record = compute(at("a"), STEP)
    store = at("b")
    assert store.tree(record.digest).is_dir()
    [key] = [k for k in keys(store, "file") if (store.objects.head(k) or record).size == len(FILES["config.json"])]
    harm(store.objects, key, "flipped", random.Random(1))
    third = at("c")
    assert not third.tree(record.digest).exists()
    assert any(key in note and "config.json is not what was published" in note for note in third.notes)
    assert third.lookup(STEP.stage, STEP.key) is None, "a record that promises what is gone"


def test_manifest_that_is_another_is_no_way_out_of_the_cache(at, tmp_path):
    """Catches a manifest that somebody wrote into the bucket, with a path that leaves the cache."""
    store, data = at("a"), b"written"
    name = hashlib.sha256(data).hexdigest()
    store.objects.put(f"files/{name}", data)
    for path in ("../../../out", str(tmp_path / "out")):
        forged = canonical([{"path": path, "sha256": name, "size": len(data)}])
        digest = hashlib.sha256(forged).hexdigest()
        store.objects.put(f"trees/{digest}.json", forged)
        assert not store.tree(digest).exists()
    assert not list(tmp_path.rglob("out"))


@pytest.mark.parametrize(
    "odd",
    [
        {"path": "a\0b"},
        {"path": "./a"},
        {"path": "a//b"},
        {"path": "."},
        {"path": 1},
        {"path": "w"},
        {"path": "w/x"},
        {"path": "\ud800"},
        {"size": -1},
        {"size": True},
        {"size": "1"},
        {"sha256": "../id"},
        {"sha256": None},
        {"more": 1},
    ],
)
def test_manifest_of_another_form_is_refused(odd):
    """Catches a manifest that somebody wrote into the bucket, and that ends in a traceback or in another object."""
    name = hashlib.sha256(b"").hexdigest()
    good = [{"path": "w", "size": 1, "sha256": name}, {"path": "v", "size": 0, "sha256": name}]
    assert entries(good) is good
    with pytest.raises((ValueError, TypeError, KeyError)):
        entries([good[0], {**good[1], **odd}])


def test_damage_seen_by_a_reader_changes_nothing(at):
    """Catches a plan or report that moves objects of a bucket which it may only read."""
    store = at("a")
    record = compute(store, STEP)
    harm(store.objects, keys(store, "file")[0], "gone", random.Random(1))
    before = {stat.key for stat in store.objects.listed("")}
    reader = at("b", create=False, read_only=True)
    assert reader.lookup(STEP.stage, STEP.key) is None
    assert not reader.tree(record.digest).exists()
    assert {stat.key for stat in store.objects.listed("")} == before
    assert any("nothing is written now" in note for note in reader.notes)


def test_outputs_that_share_a_damaged_file_cost_one_computation(at):
    """Catches a damaged tokenizer after which every model of a run is trained again."""
    shared = {"tokenizer.json": b"[1, 2, 3]" * 999}
    steps = [Step({**PAYLOAD, "config": {"seed": n}}, {**shared, "w": bytes([n]) * 99}) for n in range(3)]
    first = at("a")
    for step in steps:
        compute(first, step)
    [key] = [stat.key for stat in first.objects.listed("files/") if stat.size == len(shared["tokenizer.json"])]
    harm(first.objects, key, "flipped", random.Random(2))
    other, ran = at("b"), []
    for step in steps:
        assert_right(compute(other, step, ran), step.files)
    assert len(ran) == 1


def test_damage_that_a_worker_finds_is_healed_by_who_has_the_output(at):
    """Catches a stage that fails for good because the machine which requests it has its input, intact, in the cache."""
    leader = at("a")
    record = compute(leader, STEP)
    [key] = [k for k in keys(leader, "file") if (leader.objects.head(k) or record).size == len(FILES["config.json"])]
    harm(leader.objects, key, "flipped", random.Random(1))
    assert not at("b").tree(record.digest).exists()
    ran: list[str] = []
    assert_right(compute(leader, STEP, ran), FILES)
    assert ran == [] and at("c").input_tree(record.digest).is_dir()


def test_what_was_healed_meanwhile_is_not_set_aside(at, monkeypatch):
    """Catches a reader that saw a file missing and throws away the good one, or the record, which another machine sent
    since then."""
    store = at("a")
    record = compute(store, STEP)
    [key] = [k for k in keys(store, "file") if (store.objects.head(k) or record).size == len(FILES["config.json"])]
    store.objects.delete(key)
    other = at("b")
    raised = other.discard

    def heal(tree) -> None:
        raised(tree)
        store.objects.put(key, FILES["config.json"])

    monkeypatch.setattr(other, "discard", heal)
    assert other.lookup(STEP.stage, STEP.key) is None
    assert [stat.key for stat in store.objects.listed("quarantine/")] == []
    assert_right(at("c").lookup(STEP.stage, STEP.key), FILES)


def test_object_that_is_too_large_for_what_it_is_is_not_read(at, monkeypatch):
    """Catches a record of 10^11 bytes that takes the memory of every machine which lists records."""
    store = at("a")
    compute(store, STEP)
    [key] = keys(store, "record")
    monkeypatch.setattr(objects, "MAX_BYTES", len(store.objects.get(key)))
    assert at("b").record(STEP.stage, STEP.key) is not None
    store.objects.put(key, store.objects.get(key) + b"\n")
    assert store.objects.get(key) == b"" and store.objects.read(key, 0, 5)
    assert at("c").lookup(STEP.stage, STEP.key) is None
    assert keys(store, "record") == []
