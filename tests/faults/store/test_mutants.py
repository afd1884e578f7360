"""The battery's own test: stores that are broken on purpose must be caught by it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from spin_core.store import store as module
from spin_core.store.digest import tree_digest
from spin_core.store.store import Store
from tests.faults.store import battery, damages, keychecks, mutants, racing

errors = partial(battery.check_errors, number=errno.ENOSPC, lasting=False)


@pytest.mark.parametrize(
    ("broken", "check", "why"),
    [
        (mutants.WritesInPlace, battery.check_crashes, "torn at the instant"),
        (mutants.RecordFirst, battery.check_crashes, "torn at the instant"),
        (mutants.SwallowsErrors, errors, "failed in silence"),
        (mutants.LeavesTemp, errors, "left in tmp/"),
        (mutants.TrustsRecords, damages.check_flips, "flipped bit in .* was served"),
        (mutants.TrustsRecords, damages.check_replaced, "damaged tree was served"),
        (mutants.HidesReadErrors, damages.check_read_failure_is_reported, "taken for a miss"),
        (mutants.ForgetsTheTree, damages.check_flips, "torn at the instant"),
        (mutants.PlaceTrustsTheTree, damages.check_in_the_way, "wrong bytes"),
        (mutants.RemembersWhatWasIntact, damages.check_flip_after_lookup, "and served"),
        (mutants.UnlinksLocks, racing.check_lock_is_one, "two hold one lock"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_battery_broken_store_is_caught(broken: type[Store], check: Callable[[battery.Make], None], why: str):
    """Catches a battery that would pass any store."""
    with pytest.raises(AssertionError, match=why):
        check(broken)


@pytest.mark.parametrize(
    ("instead", "check", "why"),
    [
        (mutants.checks_sizes_only, damages.check_flips, "flipped bit"),
        (mutants.follows_links, damages.check_replaced, "damaged tree was served"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_battery_weaker_check_of_a_tree_is_caught(monkeypatch, instead, check, why):
    """Catches flips that also change sizes, and links to other bytes only."""
    monkeypatch.setattr(module, "check_tree", instead)
    with pytest.raises(AssertionError, match=why):
        check(Store)


SKIPPED: dict[str, tuple[Callable[[Path], bool], str]] = {
    "files": (Path.is_file, "torn at the instant|wrong bytes"),
    "the folder that a tree is renamed into": (
        lambda path: path.name == "trees",
        "torn at the instant|published and gone",
    ),
    "the folder of the record": (lambda path: path.parent.name == "records", "published and gone|ran again"),
    "the folder inside a tree": (lambda path: path.name == "weights", "torn at the instant|wrong bytes"),
}


@pytest.mark.parametrize("what", SKIPPED)
def test_battery_missing_fsync_is_caught(what: str):
    """Catches a model of the disk that keeps what was never synced."""
    skipped, why = SKIPPED[what]
    with mutants.without_sync_of(skipped), pytest.raises(AssertionError, match=why):
        battery.check_power_loss(Store)


def test_battery_shared_temporary_name_is_caught_without_locks():
    """Catches a race check in which the racers never meet."""
    with racing.flock_as(lambda fd, mode: None), pytest.raises(AssertionError):
        racing.check_processes(mutants.SharesTempNames, rounds=20)


@pytest.mark.parametrize(
    ("collect", "why"),
    [
        (mutants.gc_without_roots, "reader of what is kept|a hit was due"),
        (mutants.gc_without_checking_use, "reader of what is kept"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_battery_gc_that_takes_too_much_is_caught(collect, why):
    """Catches a race of gc in which nothing is at stake."""
    with pytest.raises(AssertionError, match=why):
        racing.check_gc(Store, rounds=30, collected=collect)


def test_battery_broken_keys_are_caught(tmp_path):
    """Catches tables of keys in which every way to make one is right."""
    with pytest.raises(AssertionError, match="got a key"):
        keychecks.check_refused(mutants.key_by_default_str)
    with pytest.raises(AssertionError, match="another key elsewhere"):
        keychecks.check_same_everywhere(tmp_path, range(1), name="tests.faults.store.mutants:key_unsorted")
    with pytest.raises(AssertionError, match="the same key"):
        keychecks.check_sensitive(mutants.key_without_version)


@pytest.mark.parametrize("broken", mutants.STORES)
def test_battery_mutants_differ_from_the_store_only_in_their_defect(broken):
    """Catches mutants that fail for being unusable: without a fault each of them publishes, hits and can be cleared."""
    with battery.folder() as place:
        battery.assert_right(battery.compute(broken(place)))
        record = broken(place).lookup("finetune", battery.KEY)
        battery.assert_right(record)
        assert record is not None and tree_digest(record.files) == record.path.name
        broken(place).link_run("empty", {})
        racing.collect(broken(place))
        assert broken(place).lookup("finetune", battery.KEY) is None


def test_battery_other_mutants_differ_only_in_their_defect(monkeypatch):
    """The same for those that are no class: syncs, checks of trees, keys, gc."""
    for skipped, _ in SKIPPED.values():
        with mutants.without_sync_of(skipped), battery.folder() as place:
            battery.assert_recovers(Store, place)
    for instead in (mutants.checks_sizes_only, mutants.follows_links):
        with monkeypatch.context() as patch, battery.folder() as place:
            patch.setattr(module, "check_tree", instead)
            battery.assert_recovers(Store, place)
    keys = (mutants.key_by_default_str, mutants.key_unsorted, mutants.key_without_version)
    for key in keys:
        assert key(battery.PAYLOAD) == key(dict(battery.PAYLOAD)) != key(battery.BEFORE.payload)
    for collect in (mutants.gc_without_roots, mutants.gc_without_checking_use):
        with battery.folder() as place:
            battery.compute(Store(place))
            Store(place).link_run("empty", {})
            collect(Store(place))
            battery.assert_recovers(Store, place)
