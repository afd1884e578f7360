"""A step of a store on S3 is replaced (`--redo … --replace`): every machine goes on from the new output."""

from __future__ import annotations

import pytest

from spin_core.errors import StoreError
from spin_core.runtime.redo import replace
from spin_core.runtime.step import KeyedStep, compute, look_up
from spin_core.store import leases
from spin_core.store.s3 import gc as remote_gc
from spin_core.store.s3.remote import RemoteStore
from spin_core.store.s3.verify import verify
from tests.faults.flow.forks import Here
from tests.faults.s3.test_clearing import chain
from tests.faults.store.battery import compute as published
from tests.faults.store.test_replacing import FIRST, HERE, asked, replaced


@pytest.fixture
def first(at):
    """The record of the step's first output, by machine a."""
    return compute(at("a"), FIRST, *HERE)[0]


def keys(store: RemoteStore) -> set[str]:
    return {stat.key for below in ("records/", "takes/") for stat in store.objects.listed(below)}


def test_new_output_is_every_machines(at, first) -> None:
    """Catches a counter that only the cache of the machine that replaced has, a first output that is overwritten on the
    service, a plan's store (read only) that does not see it, and a counter that the next machine begins again."""
    other = at("b")
    made = replaced(other, asked(other))
    assert made.take == 1 and made.differing == ["answers.jsonl"]
    for store in (at("a"), at("c"), at("d", read_only=True)):
        assert asked(store).take == 1 and look_up(store, asked(store)).digest == made.record.digest
        assert look_up(store, FIRST).digest == first.digest
    third = at("c")
    assert replaced(third, asked(third)).take == 2 and asked(at("a")).take == 2
    assert len([*at("e").records()]) == 3 and verify(at("e")) == []
    third.objects.put("takes/x.json", b"")
    assert verify(at("e")) == ["takes/x.json: not the name of a replacement."]


def test_two_machines_that_replace_at_once_make_one_replacement(at, first) -> None:
    """Catches two outputs, each gone on from by its machine, or a counter of 2 although both replaced the first."""
    one, other = at("a"), at("b")
    both, made = (asked(one), asked(other)), []
    late = Here(lambda event: made.append(replaced(one, both[0])))  # while the other one computes
    with other.using():
        second = replace(other, both[1], HERE[0], late, HERE[2])  # type: ignore[arg-type]
    assert second.take == made[0].take == 1 and second.record.digest == made[0].record.digest
    assert asked(at("c")).take == 1 and look_up(at("c"), asked(at("c"))).digest == second.record.digest
    assert len([*at("c").records()]) == 2


def test_service_that_fails_before_the_note_leaves_the_first_output(at, first, proxy) -> None:
    """Catches a key that runs are sent to and that leads nowhere, and a new output that is computed a second time
    although only its note was missing."""
    store = at("b")
    proxy.meddle = lambda request: 403 if request.method == "PUT" and "/takes/" in request.path else None
    with pytest.raises(StoreError):
        replaced(store, asked(store))
    proxy.forget()
    assert asked(at("c")).take == 0 and look_up(at("c"), asked(at("c"))).digest == first.digest
    left = look_up(at("c"), FIRST.at(1))
    again = at("c")
    assert left is not None and replaced(again, asked(again)).record.digest == left.digest
    assert asked(at("a")).take == 1

    proxy.meddle = lambda request: 403 if request.method == "PUT" and "/records/" in request.path else None
    with pytest.raises(StoreError):
        replaced(store, asked(store))
    proxy.forget()
    assert asked(at("a")).take == 1, "a counter without its output"


def test_service_that_cannot_list_does_not_give_the_first_output(at, first, proxy) -> None:
    """Catches a listing that failed and counts as "nothing was replaced": the first output would come back."""
    store = at("b")
    replaced(store, asked(store))
    proxy.meddle = lambda request: 403 if "takes" in request.query else None
    with pytest.raises(StoreError):
        asked(store)


def test_gc_keeps_counters_and_treats_outputs_as_others(at, first, monkeypatch) -> None:
    """Catches a gc that takes takes/ for waste (the first output would come back in silence), and a replaced output
    that it keeps though no run needs it."""
    monkeypatch.setattr(leases.Lease, "_begin", lambda self: None)
    store = at("b")
    replaced(store, asked(store))
    kept = [published(store, step) for step in chain("a", "b")]
    store.link_run("kept", {"1-finetune-iter-0": kept[0].digest, "best": kept[1].digest})
    for stat in [*store.objects.listed("leases/")]:
        store.objects.delete(stat.key)
    remote_gc.gc(store, keep_runs=1)
    assert {key for key in keys(store) if "sampled" in key} == set()
    assert asked(at("c")).take == 1 and look_up(at("c"), asked(at("c"))) is None


def test_step_without_the_note_is_unlike_one_that_has_it() -> None:
    """Catches a first output and a replaced one that share a key: the record of the one would stand for the other."""
    assert KeyedStep(FIRST.step, {}, {FIRST.key: 1}).key == FIRST.at(1).key != FIRST.key
