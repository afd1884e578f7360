"""gc, verify and usage of a store on S3, and what other machines see of its runs."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import timedelta

import pytest

from spin_core.errors import BadInput, StoreError
from spin_core.store import leases
from spin_core.store.keys import payload
from spin_core.store.s3 import gc as remote_gc
from spin_core.store.s3 import runs as remote_runs
from spin_core.store.s3 import verify
from spin_core.store.s3.remote import RemoteStore
from tests.faults.s3.machine import started
from tests.faults.store.battery import assert_right, compute
from tests.faults.store.kinds import Step

SHARED = b"[1, 2]" * 500


def chain(*names: str) -> list[Step]:
    """Steps of which each was made from the one before (by an invented digest where it is the first)."""
    steps: list[Step] = []
    digest = "a" * 64
    for name in names:
        steps.append(
            Step(payload("finetune", 1, {"name": name}, {"model": digest}), {"w": name.encode() * 50, "t": SHARED})
        )
        digest = digest_of(steps[-1])
    return steps


def digest_of(step: Step) -> str:
    from spin_core.store.digest import tree_digest

    entries = [
        {"path": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in step.files.items()
    ]
    return tree_digest(sorted(entries, key=lambda entry: entry["path"]))


@pytest.fixture
def left(at, monkeypatch) -> RemoteStore:
    """Opens a store that nobody uses any more: the leases of this test's own stores are over."""
    monkeypatch.setattr(leases.Lease, "_begin", lambda self: None)
    return at("a")


def views(store: RemoteStore) -> dict[str, remote_runs.View]:
    """The runs' pointers on the service."""
    return remote_runs.read(store.objects, store.objects.listed("runs/"))[0]


def keys(store: RemoteStore, below: str = "") -> list[str]:
    return [stat.key for stat in store.objects.listed(below)]


def test_gc_keeps_out_while_another_machine_is_at_work(url, at, tmp_path, left):
    """Catches a gc that takes what a run on another machine is about to read, and one that a dead process stops for
    good."""
    one = {"payload": chain("x")[0].payload, "sizes": {"w": 9}, "salt": 0}
    living = started(url, tmp_path / "b", "hold", one)
    assert living.stdout and living.stdout.readline() == "held\n"
    left.objects.put("files/" + "0" * 64, b"of nobody")
    with pytest.raises(StoreError, match="a run is using the store"):
        remote_gc.gc(left)
    assert "gc" not in keys(left) and "files/" + "0" * 64 in keys(left)
    living.stdin.write("done\n")
    living.stdin.close()
    assert living.wait(60) == 0
    assert remote_gc.gc(left).bytes == len(b"of nobody")
    assert keys(left, "leases/") == []


def test_lease_of_a_dead_process_ends(left, monkeypatch):
    """Catches a killed run after which nothing can ever be cleared, and a decision by this computer's clock."""
    left.objects.put("leases/1-dead", b"process 1\n")
    with pytest.raises(StoreError, match="two hours"):
        remote_gc.gc(left)
    later = left.objects.now() + leases.FRESH + timedelta(minutes=1)
    monkeypatch.setattr(left.objects, "now", lambda: later)
    remote_gc.gc(left)
    assert keys(left, "leases/") == []


def test_process_waits_while_gc_is_at_work(at, monkeypatch):
    """Catches a run that begins in the middle of a gc, whose inputs go while it looks them up."""
    store = at("a", runs=False)
    store.objects.put("gc", b"gc\n")
    seen: list[float] = []

    def end(seconds: float) -> None:
        seen.append(seconds)
        store.objects.delete("gc")

    monkeypatch.setattr(leases.time, "sleep", end)
    with store.using():
        assert seen == [leases.LOOK]
        with pytest.raises(StoreError, match="a run is using the store"):
            remote_gc.gc(store)


def test_lease_that_came_after_the_mark_stays(left, monkeypatch):
    """Catches a gc that deletes the lease of a run which waits for it: the next gc takes what that run reads."""
    listed = leases.fresh

    def and_one_comes(objects):
        held = listed(objects)
        objects.put("leases/1-new", b"process 1\n")
        return held

    monkeypatch.setattr(remote_gc, "fresh", and_one_comes)
    remote_gc.gc(left)
    assert keys(left, "leases/") == ["leases/1-new"]


@pytest.mark.parametrize("body", [b"<html>Sign in</html>", b""])
def test_gc_that_is_answered_by_a_sign_in_page_does_nothing(left, proxy, body):
    """Catches a gc for which `GET ?list-type=2` of records, answered 200 with a sign-in page, is a store without
    records: all that there was is gone."""
    for step in chain("one", "two"):
        compute(left, step)
    before = keys(left)
    proxy.meddle = lambda request: body if "list-type=2" in request.query and "records" in request.query else None
    with pytest.raises(StoreError, match="an answer without Name came instead of the service's after 4 tries"):
        remote_gc.gc(left)
    proxy.forget()
    assert keys(left) == before


def test_only_one_gc_is_at_work(left, monkeypatch):
    """Catches two gcs that see the same dead one and both delete, one that ends another's mark, and a dead one that
    stops all."""
    compute(left, chain("one")[0])
    left.objects.put("files/" + "1" * 64, b"123")
    left.objects.put("gc", b"another")
    with pytest.raises(StoreError, match="another gc is at work"):
        remote_gc.gc(left)
    later = left.objects.now() + leases.FRESH + timedelta(minutes=1)
    with monkeypatch.context() as patch:
        patch.setattr(left.objects, "now", lambda: later)
        with pytest.raises(StoreError, match="another gc began at the same time"):
            remote_gc.gc(left, report=lambda what, size: left.objects.put("gc", b"another"))
        assert left.objects.get("gc") == b"another" and keys(left, "files/" + "1" * 64)
        remote_gc.gc(left)
    assert keys(left, "gc") == ["gc.json"] and keys(left, "files/" + "1" * 64) == []


def test_lease_that_could_not_be_written_is_none(at, proxy):
    """Catches a run that goes on unseen by gc after its first lease failed, and a lease written after its end."""
    store = at("a", runs=False)
    proxy.meddle = lambda request: 403 if request.method == "PUT" else None
    for _ in range(2):
        with pytest.raises(StoreError), store.using():
            pytest.fail("it counts as held")
    proxy.forget()
    with store.using():
        assert len(keys(store, "leases/")) == 1
    store._lease.release()
    store._lease._write()
    assert keys(store, "leases/") == []


def test_gc_takes_what_no_record_names_and_nothing_else(left, at):
    """Catches a gc that takes a file which two outputs share, leaves one that nobody has, or an upload of nobody."""
    steps = chain("one", "two")
    for step in steps:
        compute(left, step)
    left.objects.put("files/" + "1" * 64, b"123")
    left.objects.put("trees/" + "2" * 64 + ".json", b"[]")
    left.objects.begin("files/" + "3" * 64)
    later = left.objects.now() + leases.FRESH + timedelta(minutes=1)
    left.objects.now = lambda: later  # type: ignore[method-assign]
    before = keys(left)
    dry = remote_gc.gc(left, dry_run=True)
    assert keys(left) == before
    result = remote_gc.gc(left)
    assert dry == result and (result.bytes, result.trees, result.records, result.temp) == (3, 1, 0, 1)
    assert left.objects.uploads("") == []
    assert verify.verify(left) == []
    for step in steps:
        assert_right(at("fresh").lookup(step.stage, step.key), step.files)


def test_gc_keeps_runs_what_they_were_made_from_and_the_best(left, at):
    """Catches a gc that takes the input of a kept model, or the best model of an old run."""
    old, best, new = chain("base", "old"), chain("x", "best"), chain("base", "y", "new")
    for step in (*old, *best, *new):
        compute(left, step)
    left.link_run("run-1", {"001-finetune-iter-0": digest_of(old[-1])})
    left.link_run("run-2", {"001-a": digest_of(best[0]), "best": digest_of(best[-1])})
    left.link_run("run-3", {"001-a": digest_of(new[-1])})
    with pytest.raises(BadInput, match=r"run-9: .* runs are run-1, run-2, run-3\."):
        remote_gc.gc(left, keep=["run-9"])
    remote_gc.gc(left, keep_runs=1)
    there = {record.digest for record in at("b").records()}
    kept = [*new, best[-1], old[-1]]  # of run-1, which never came to a best one, the last it trained
    assert there == {digest_of(step) for step in kept}
    assert verify.verify(left) == []
    assert views(left)["run-2"].links == {"best": digest_of(best[-1])}, "a link to what is gone"


def test_gc_that_dies_leaves_no_record_without_its_files(left, at, proxy):
    """Catches files that go before their record."""
    steps = chain("one", "two", "three")
    for step in steps:
        compute(left, step)
    left.link_run("run-1", {"best": digest_of(steps[0])})
    count = 0

    def third(request) -> int | None:
        nonlocal count
        count += request.method == "DELETE" and request.path.rsplit("/", 2)[-2] != "leases"
        return 403 if count > 3 else None

    proxy.meddle = third
    with pytest.raises(StoreError, match=r"403|denied|Meddled"):
        remote_gc.gc(left, keep_runs=0)
    proxy.forget()
    left.objects.delete("gc")
    assert verify.verify(left) == []


def test_usage_counts_shared_files_once(left):
    """Catches a table whose sum is not what the service charges for."""
    steps = chain("one", "two")
    for step in steps:
        compute(left, step)
    left.link_run("run-1", {"a": digest_of(steps[0])})
    left.objects.put("files/" + "1" * 64, b"12345")
    usage = verify.usage(left)
    assert usage.total == sum(stat.size for stat in left.objects.listed("files/"))
    assert [(line.name, line.count) for line in usage.stages] == [("finetune", 2)]
    assert [(line.name, line.bytes) for line in usage.other] == [("(no record)", 5)]
    assert verify.usage(left, "run-1").runs[0].count == 1
    assert verify.usage(left, "run-2").runs == []


def test_other_machines_see_runs(at):
    """Catches a report, a link or an order of runs that only the machine which made it has."""
    store, step = at("a"), chain("one")[0]
    compute(store, step)
    store.link_run("run-1", {"001-finetune": digest_of(step), "best": digest_of(step)})
    store.write_run_file("run-1", "report.md", b"# one")
    store.link_run("run-2", {"best": digest_of(step)})
    store.link_run("run-1", {"001-finetune": None})
    other = at("b", create=False, read_only=True)
    runs = other.root / "runs"
    assert os.readlink(other.root / "latest") == "runs/run-1"
    assert (runs / "run-1" / "report.md").read_bytes() == b"# one"
    assert {p.name for p in (runs / "run-1").iterdir() if p.is_symlink()} == {"best"}
    assert os.readlink(runs / "run-2" / "best") == f"../../trees/{digest_of(step)}"
    store.write_run_file("run-1", "report.md", b"# two")
    third = at("b")
    assert (third.root / "runs" / "run-1" / "report.md").read_bytes() == b"# two"
    third.link_run("run-3", {"best": digest_of(step)})
    assert [(at("c").root / "runs" / f"run-{n}" / ".order").read_text() for n in (1, 2, 3)] == ["3\n", "2\n", "4\n"]


def test_pointer_that_is_damaged_costs_no_model(left):
    """Catches a gc that takes the best model of a run because of one odd label, or of a pointer that it cannot read,
    and one that such a pointer stops for good."""
    step = chain("one")[0]
    compute(left, step)
    run_json = {"links": {"best": digest_of(step), "a/b": "x", "c": ["d"], "e": digest_of(step)[:-1]}, "order": 0}
    left.objects.put("runs/run-1/run.json", json.dumps(run_json).encode())
    remote_gc.gc(left, keep_runs=0)
    left.link_run("run-2", {})
    for data in (b"", b"[]", b'{"links": [], "order": 1}', b'{"links": {}, "order": 1e400}', b"[" * 99_999):
        left.objects.put("runs/run-1/run.json", data)
        left.notes.clear()
        remote_gc.gc(left, keep_runs=0, dry_run=True)
        assert keys(left, "runs/run-1/") and "would be set aside" in left.notes[0]
        left.notes.clear()
        assert remote_gc.gc(left, keep_runs=0).records == 0
        assert (
            len(left.notes) == 1 and "runs/run-1/run.json: this is not the pointer of a run; it is set" in left.notes[0]
        )
        assert keys(left, "runs/run-1/") == []
    assert len(keys(left, "quarantine/")) == 5 and left.lookup(step.stage, step.key) is not None
    assert remote_gc.gc(left, keep_runs=0).records == 1, "it keeps records for good"


def test_odd_keys_are_passed_over(at):
    """Catches an object that stops every opening of a store: a folder's mark of a console, a path that leaves the
    cache, a device, a file of 10^9 bytes, a pointer with an odd number."""
    store, step = at("a"), chain("one")[0]
    compute(store, step)
    for below in ("", "runs/", "records/", "leases/", "trees/", "runs/x/", "runs/x/files/"):
        store.objects.put(below, b"")
    for odd in ("records/x", "runs/x", "runs/x/files//dev/zero", "runs/x/files/../../../out", "runs/../files/y"):
        store.objects.put(odd, b"odd")
    store.objects.put("runs/run-1/run.json", b'{"links": {"best": "' + b"a" * 64 + b'"}, "order": 1e400}')
    store.write_run_file("run-1", "report.md", b"# one")
    other = at("b")
    assert (other.root / "runs" / "run-1" / "report.md").read_bytes() == b"# one"
    assert [path.name for path in (other.root / "runs").iterdir()] == ["run-1"]
    assert [record.key for record in other.records()] == [step.key]
    assert not [path for path in other.root.parent.rglob("*") if path.name in ("out", "y")]


def test_gc_without_the_right_to_list_uploads_says_so(left, proxy):
    """Catches a gc that clears nothing because of a right that a bucket's policy seldom gives."""
    compute(left, chain("one")[0])
    left.objects.put("files/" + "1" * 64, b"123")
    proxy.meddle = lambda request: 403 if "uploads" in request.query else None
    assert remote_gc.gc(left).bytes == 3
    assert any("s3:ListBucketMultipartUploads" in note for note in left.notes)


def test_file_that_is_an_input_by_its_sum_is_no_output_without_a_record(at, monkeypatch):
    """Catches a gc that takes every store of real runs for a damaged one: a shard of prompts is a file of `tokenize`,
    and an input of `generate` by that file's sum. Where the record with that file is gone, gc refuses."""
    monkeypatch.setattr(leases.Lease, "_begin", lambda self: None)
    store, prompts = at("a"), b"prompts" * 50
    tokens = Step(payload("tokenize", 1, {}, {"rows": "a" * 64}), {"shard": prompts})
    answers = Step(
        payload("generate", 1, {}, {"prompts": hashlib.sha256(prompts).hexdigest()}), {"answers": b"answers"}
    )
    made = [compute(store, step) for step in (tokens, answers)]
    store.link_run("run-1", {"1-tokenize": made[0].digest, "2-generate": made[1].digest})
    for while_used in (False, True):
        assert remote_gc.gc(store, keep_runs=1, while_used=while_used).records == 0
    store.link_run("run-1", {"1-tokenize": None})
    store.objects.delete(f"records/tokenize/{made[0].key}.json")
    with pytest.raises(StoreError, match=r"records are missing: generate .* was made from the output"):
        remote_gc.gc(store, keep_runs=1)
