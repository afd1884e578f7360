"""gc of a store on S3 that is never idle: condemned first, removed when nobody can hold it any more."""

from __future__ import annotations

from functools import partial

import pytest

from flows.keeping import clear as clear_by_policy
from spin_core.errors import StoreError
from spin_core.store import keep, leases
from spin_core.store.gc import GcResult
from spin_core.store.s3 import condemned, verify
from spin_core.store.s3 import gc as remote_gc
from spin_core.store.s3.remote import RemoteStore
from tests.faults.s3.test_clearing import SHARED, chain, digest_of, keys, views
from tests.faults.s3.test_deltas import models
from tests.faults.store.battery import assert_right, compute
from tests.faults.store.kinds import Step

clear = partial(remote_gc.gc, keep_runs=1, while_used=True)
A, B, KEPT = chain("a")[0], chain("b")[0], chain("kept")[0]


def user(at, name: str = "a") -> RemoteStore:
    """A process that uses the store from now on."""
    store = at(name)
    with store.using():
        return store


def end(*stores: RemoteStore) -> None:
    for store in stores:
        store._lease.release()


@pytest.fixture
def first(at) -> RemoteStore:
    """A user that has published two outputs that no run needs, and one that the last run does."""
    store = user(at)
    for step in (A, B, KEPT):
        compute(store, step)
    store.link_run("run-1", {"best": digest_of(A)})
    store.forget_run("run-1")
    store.link_run("run-2", {"best": digest_of(KEPT)})
    return store


def there(store: RemoteStore, *steps: Step) -> list[bool]:
    """Which of the steps' records, manifests and own files the service has; never some of the three."""
    listed, made = set(keys(store)), []
    for step in steps:
        record = f"records/{step.stage}/{step.key}.json"
        own = {f"files/{entry}" for entry in _sums(step)}
        have = {record in listed, f"trees/{digest_of(step)}.json" in listed, *(key in listed for key in own)}
        assert len(have) == 1, f"{step.payload}: in part"
        made += have
    return made


def _sums(step: Step) -> list[str]:
    import hashlib

    return [hashlib.sha256(data).hexdigest() for data in step.files.values() if data != SHARED]


def counts(result: GcResult) -> tuple[int, int, int, bool]:
    return result.records, result.trees, result.waiting, result.in_use


def test_goes_when_all_have_ended_who_began_before(at, first) -> None:
    """Catches a gc that takes what somebody may hold who began before it was condemned, one that never takes anything
    of a store in use, and one that takes a file which a kept output shares."""
    gc_at = at("gc")
    with pytest.raises(StoreError, match="a run is using the store"):
        remote_gc.gc(gc_at, keep_runs=1)
    assert counts(clear(gc_at)) == (0, 0, 2, True) and all(there(gc_at, A, B, KEPT))
    second = user(at, "b")
    assert counts(clear(gc_at)) == (0, 0, 2, True) and all(there(gc_at, A, B, KEPT)), "the first may hold them"
    end(first)
    dry, before = clear(gc_at, dry_run=True), keys(gc_at)
    assert counts(dry) == (2, 2, 0, True) and keys(gc_at) == before
    done = clear(gc_at)
    assert (done.records, done.bytes) == (2, dry.bytes) and there(gc_at, A, B, KEPT) == [False, False, True]
    assert keys(gc_at, "leases/") == [second._lease.key] and keys(gc_at, "condemned/") == []
    assert second.lookup("finetune", A.key) is None and verify.verify(gc_at) == []
    assert_right(second.lookup("finetune", KEPT.key), KEPT.files)
    end(second)
    assert counts(clear(gc_at)) == (0, 0, 0, False)


def test_who_began_later_keeps_what_it_looks_up_and_sends(at, first) -> None:
    """Catches look-ups and outputs being sent that do not say what they rely on, and one that keeps all."""
    gc_at, again = at("gc"), Step({**B.payload, "version": 2}, {**B.files, "more": b"1"})
    clear(gc_at)
    second, third = user(at, "b"), user(at, "c")
    assert second.lookup("finetune", A.key)
    end(first)
    compute(third, again)  # has a file of B, which is not sent a second time
    assert clear(gc_at).records == 1
    listed = set(keys(gc_at))
    assert f"records/finetune/{B.key}.json" not in listed and all(there(gc_at, A, again, KEPT))
    assert_right(at("d").lookup("finetune", A.key), A.files)
    assert_right(at("d").lookup("finetune", again.key), again.files)
    assert verify.verify(gc_at) == []
    end(second, third)


def test_a_record_that_came_after_the_list_keeps_its_files(at, first) -> None:
    """Catches a record without its files: somebody who did not know of the list sent it, and no run shows it."""
    gc_at, again = at("gc"), Step({**B.payload, "version": 2}, {**B.files, "more": b"1"})
    clear(gc_at)
    compute(first, again)
    end(first)
    second = user(at, "b")
    assert clear(gc_at).records == 2 and all(there(gc_at, again))
    assert_right(second.lookup("finetune", again.key), again.files)
    assert verify.verify(gc_at) == []
    end(second)


@pytest.mark.parametrize("most", [2, 5])
def test_a_list_that_is_too_long_is_cut(at, first, monkeypatch, most) -> None:
    """Catches a cut between a record and its manifest, or of files that a record outside of the list has."""
    monkeypatch.setattr(condemned, "MOST", most)
    first.link_run("run-1", {"001-old": digest_of(A)})  # a run that is given up still leads to what went
    first.link_run("run-2", {"best": digest_of(KEPT)})
    gc_at, users, removed = at("gc"), [first], 0
    for turn in range(6):
        removed += clear(gc_at).records
        users.append(user(at, f"u{turn}"))
        end(users.pop(0))
        assert verify.verify(gc_at) == []
    assert removed == 2 and there(gc_at, A, B, KEPT) == [False, False, True]
    end(*users)


def test_a_mark_that_cannot_be_read_is_a_sentence(at, first) -> None:
    """Catches a damaged mark that is taken for one of an output without files."""
    clear(at("gc"))
    first.objects.put(f"condemned/{'1' * 64}.json", b"")
    with pytest.raises(StoreError, match=r"condemned/1+\.json: not a list of files, so it is not known"):
        clear(at("gc"))


def test_what_is_being_sent_is_not_taken_half(at, first, proxy) -> None:
    """Catches a gc that takes a file which an output in transit has, as no record names it yet."""
    gc_at, again = at("gc"), Step({**B.payload, "version": 2}, {**B.files, "more": b"1"})
    clear(gc_at)
    second = user(at, "b")
    end(first)
    inside: list[GcResult] = []

    def meanwhile(request) -> None:
        if not inside and request.method == "PUT" and f"/trees/{digest_of(again)}" in request.path:
            inside.append(GcResult(0, 0, 0, 0, 0))
            inside[0] = clear(gc_at)

    proxy.meddle = meanwhile
    compute(second, again)
    proxy.forget()
    assert inside[0].records == 2 and there(gc_at, again, A) == [True, False]
    assert verify.verify(gc_at) == [] and verify.verify(gc_at, deep=True) == []
    end(second)


def test_what_a_difference_hangs_on_is_kept(at, first) -> None:
    """Catches weights that were sent as a difference to a model that goes."""
    gc_at, steps = at("gc"), models(2)
    for step in steps[:2]:
        compute(first, step)
    clear(gc_at)
    second = user(at)  # on the same machine, whose cache has the model; a worker looks up nothing
    end(first)
    compute(second, steps[2])
    assert any(key.startswith("deltas/") for key in keys(gc_at)), "nothing was sent as a difference"
    assert clear(gc_at).records >= 2
    for step in steps[1:]:
        assert_right(at("fresh").lookup(step.stage, step.key), step.files)
    end(second)


def test_a_mark_that_a_gc_may_have_missed_waits_for_it(at, first, monkeypatch) -> None:
    """Catches a look-up that marks while a gc removes, and goes on before it is over."""
    clear(at("gc"))
    second = user(at, "b")
    end(first)
    asked: list[float] = []

    def sleep(seconds: float) -> None:
        asked.append(seconds)
        second.objects.delete("gc")
        second.objects.delete(f"records/finetune/{A.key}.json")

    monkeypatch.setattr(leases.time, "sleep", sleep)
    second.objects.put("gc", b"at work")
    assert second.lookup("finetune", A.key) is None
    assert asked == [leases.LOOK]
    end(second)


def test_a_list_without_its_leases_is_made_again(at, first, monkeypatch) -> None:
    """Catches a gc that died between the list and the leases, after which the next one waits for nobody."""
    gc_at = at("gc")

    def dies(objects: object) -> list:
        raise StoreError("died")

    with monkeypatch.context() as patch:
        patch.setattr(condemned, "fresh", dies)
        with pytest.raises(StoreError, match="died"):
            clear(gc_at)
    second = user(at, "b")
    assert counts(clear(gc_at)) == (0, 0, 2, True)
    end(first)
    assert counts(clear(gc_at)) == (0, 0, 2, True) and all(there(gc_at, A, B)), "the second met another list"
    end(second)
    with user(at, "c").using():
        assert clear(gc_at).records == 2


def test_nothing_goes_beside_an_older_spinloop(at, first) -> None:
    """Catches a process that marks nothing and is taken for one that relies on nothing."""
    gc_at = at("gc")
    clear(gc_at)
    end(first)
    gc_at.objects.put("leases/1-old", b"process 1\n")
    assert counts(clear(gc_at)) == (0, 0, 2, True) and all(there(gc_at, A, B))
    assert "1 of 1 processes that use the store are of an older spinloop" in gc_at.notes[-1]


def test_an_idle_store_loses_its_list_too(at, first) -> None:
    """Catches a list that outlives its reason, and a policy that does not reach S3."""
    gc_at = at("gc")
    made = clear_by_policy(gc_at, keep.parse({"while_used": True, "keep_runs": 1}, "x"))
    assert made.result.in_use and made.lines(False)[-1].startswith("Runs use the store")
    clear(gc_at)
    assert keys(gc_at, "condemned/") == ["condemned/list.json"]
    end(first)
    assert counts(clear(gc_at)) == (2, 2, 0, False) and keys(gc_at, "condemned/") == []
    assert views(gc_at)["run-2"].links == {"best": digest_of(KEPT)}


def test_a_damaged_list_is_a_sentence(at, first) -> None:
    """Catches a list that is taken for empty: what this process looks up would not be marked."""
    first.objects.put("condemned/list.json", b"{}")
    with pytest.raises(StoreError, match=r"condemned/list\.json: not what gc wrote; delete it when no run uses"):
        user(at, "b").lookup("finetune", A.key)
