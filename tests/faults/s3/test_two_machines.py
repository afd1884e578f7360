"""Two machines on one store: what one computed the other has; both at once give one record, and both are right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from tests.faults.fault import Fault
from tests.faults.s3.machine import answer_of, contents, started
from tests.faults.store.battery import PAYLOAD, STEP, assert_right, compute
from tests.faults.store.kinds import Step

SIZES = {"config.json": 20, "w.safetensors": 200_000}
WORK = {"payload": PAYLOAD, "sizes": SIZES, "salt": 1}
MEET = Fault("R10", "two machines compute one key of a store on S3 at once", pr=1, night=10, release=60)


def records(store) -> list[str]:
    """All records, evidence too."""
    return [stat.key for stat in store.objects.listed("records/")]


def test_one_computes_the_other_hits(url, at, tmp_path):
    """Catches a second machine that computes again, or that gets other bytes."""
    first = answer_of(started(url, tmp_path / "a", "compute", WORK))
    second = answer_of(started(url, tmp_path / "b", "compute", WORK))
    assert (first["ran"], second["ran"]) == (True, False)
    assert first["right"] and second["right"] and first["digest"] == second["digest"]
    assert first["notes"] == second["notes"] == []
    assert [stat.key for stat in at("c", create=False).objects.listed("leases/")] == [], "a lease outlived its process"


def meet(url: str, folder: Path, salts: tuple[int, int]) -> list[dict]:
    """Two machines that publish at the same moment."""
    works = [{**WORK, "salt": salt, "or": list(salts)} for salt in salts]
    machines = [started(url, folder / f"{n}", "meet", work) for n, work in enumerate(works)]
    for machine in machines:
        assert machine.stdout and machine.stdout.readline() == "ready\n"
    for machine in machines:  # both have looked, had a miss, and computed
        machine.stdin.write("go\n")
        machine.stdin.flush()
    return [answer_of(machine) for machine in machines]


def test_both_at_once_leave_one_record(url, at, tmp_path):
    """Catches a second writer that overwrites the first one's record, or fails because of it."""

    def trial(rng: random.Random) -> None:
        both = meet(url, tmp_path / str(rng.random()), (5, 5))
        store = at(f"third {rng.random()}")
        assert [one["ran"] for one in both] == [True, True]
        assert all(one["right"] for one in both) and both[0]["digest"] == both[1]["digest"]
        assert len(records(store)) == 1
        assert_right(store.lookup("finetune", STEP.key), contents(SIZES, 5))
        for stat in list(store.objects.listed("")):
            store.objects.delete(stat.key)

    MEET.run(trial)


def test_two_outputs_for_one_key_are_reported_and_one_stands(url, at, tmp_path):
    """Catches a nondeterministic step whose two outputs are both used, each on its machine."""
    both = meet(url, tmp_path, (1, 2))
    store = at("third")
    assert all(one["right"] for one in both)
    assert both[0]["digest"] == both[1]["digest"] == store.lookup("finetune", STEP.key).digest, "two truths"
    assert len(records(store)) == 2 and sum(".nondeterministic-" in key for key in records(store)) == 1
    assert sum("gave another output" in note for one in both for note in one["notes"]) == 1


def test_service_without_conditional_create_is_reported_once(at, proxy, request):
    """Catches a service that ignores `If-None-Match` and is trusted with it, and one that nobody is warned of."""
    if request.node.callspec.params["s3_server"] == "ceph":
        pytest.skip("Ceph checks the signature of the header that the proxy drops")
    proxy.dropped = {"if-none-match"}
    store = at("a")
    one = compute(store, STEP)
    store.check_writable()
    store.check_writable()
    assert store.objects.conditional is False
    assert len([note for note in store.notes if "no conditional create" in note]) == 1
    other = at("b")
    other.check_writable()
    assert_right(other.lookup(STEP.stage, STEP.key))
    assert_right(compute(other, Step({**PAYLOAD, "config": {"n": 1}}, {"a": b"1"})), {"a": b"1"})
    written = [sent.path for sent in proxy.requests if sent.method == "PUT" and sent.path.endswith(f"{one.key}.json")]
    assert len(written) == 1, "a record was written again"


def test_service_that_refuses_conditions_is_used_without(at, proxy):
    """Catches a run that stops at a service which answers 501 to `If-None-Match`."""
    proxy.meddle = lambda request: 501 if request.conditional else None
    store = at("a")
    store.check_writable()
    assert store.objects.conditional is False
    assert_right(compute(store, STEP))
    assert_right(at("b").lookup(STEP.stage, STEP.key))


def test_one_lost_answer_does_not_turn_conditions_off(at, proxy):
    """Catches a store whose records overwrite each other from one dropped connection or one odd 400 on."""
    store, meant = at("a"), []

    def once(request) -> int | None:
        meant.append(request.conditional)
        return 400 if request.conditional and sum(meant) == 1 else None

    proxy.meddle = once
    with pytest.raises(StoreError):
        store.check_writable()
    assert store.objects.conditional is None
    proxy.forget()
    put_once = store.objects.put_once
    answers = iter([False])  # the first write's answer was lost: the retry met its object
    store.objects.put_once = lambda key, data: put_once(key, data) and next(answers, True)
    store.check_writable()
    assert store.objects.conditional is True and not store.notes


def test_machine_that_computed_finds_the_record_that_stands(at):
    """Catches a machine that goes on with its own output after another one's was made the record: after a repair, or
    while it was cut off."""
    store, other = at("a"), at("b")
    mine = compute(store, Step(PAYLOAD, {"w": b"mine"}))
    for key in records(store):
        store.objects.delete(key)
    theirs = compute(other, Step(PAYLOAD, {"w": b"theirs"}))
    stored = store.lookup("finetune", STEP.key)
    assert stored.digest == theirs.digest != mine.digest
    assert_right(stored, {"w": b"theirs"})


def test_service_that_lost_everything_gets_it_back_from_a_cache(at):
    """Catches a bucket that was emptied, and a machine with all of it that computes everything again."""
    store = at("a")
    compute(store, STEP)
    for stat in list(store.objects.listed("")):
        store.objects.delete(stat.key)
    ran: list[str] = []
    assert_right(compute(at("a"), STEP, ran))
    assert ran == []
    assert_right(at("b").lookup(STEP.stage, STEP.key))


def test_link_that_leaves_the_latest_run_and_the_day_of_a_record_reach_the_other_machine(url, at, tmp_path):
    """Catches a link that only its own machine has, an old run that becomes the latest elsewhere, and the day on which
    a record came into a cache in place of the one on which it was published."""
    first = at("a")
    record = compute(first, STEP)
    for run in ("old", "new"):
        first.link_run(run, {"01": record.digest})
    first.link_run("old", {"02": record.digest}, latest=False)
    second = at("b")
    assert (second.root / "latest").readlink().name == "new"
    assert (second.root / "runs/old/02").readlink().name == record.digest
    there = first.objects.head(f"records/{record.stage}/{record.key}.json")
    assert second.published(record.stage, record.key) == there.modified
    assert second.published(record.stage, "0" * 64) is None
