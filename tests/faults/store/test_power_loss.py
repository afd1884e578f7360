"""R5: power is lost after any operation; what was not synced is gone, in every way that POSIX allows."""

from __future__ import annotations

import os
import random
from itertools import product
from pathlib import Path

import pytest

from spin_core.store import fs
from spin_core.store.gc import gc
from spin_core.store.store import Store
from tests.faults.fault import Fault
from tests.faults.store import battery, power
from tests.faults.store.battery import BEFORE, STEP, compute, folder, overwrite
from tests.faults.store.kinds import Step, kinds
from tests.faults.store.power import Moment, after_power_loss

R5 = Fault("R5", "power loss after any operation of publishing × what was not synced is empty, half, undone")
R5_AWAY = Fault("R5", "power loss after any operation of quarantine and of gc, as above")
R5_DRAWN = Fault(
    "R5",
    "power loss at a random operation, each file and name lost or not",
    pr=150,
    night=5000,
    release=20000,
)


@pytest.mark.parametrize("stage", ["finetune", "reformat"])
def test_publish_power_lost_after_any_operation_never_wrong_bytes(stage):
    """Catches a rename before the fsync of what it names, a record that outlives its tree, and a publish that returns
    before its output is durable."""
    battery.check_power_loss(Store, R5, kinds()[stage])


def test_publish_into_a_new_folder_is_durable_on_return(place):
    """Catches syncing the store and not the folders that were made for it: all of it would be gone."""
    inner = Path("a/b")
    log = power.record(place, lambda: compute(Store(place / inner)))
    for policy in power.POLICIES:
        with folder() as target:
            after_power_loss(log, len(log) - 1, policy, target)
            battery.assert_right(Store(target / inner).lookup(STEP.stage, STEP.key))


def recorded() -> list[Moment]:
    with folder() as place:
        compute(Store(place), BEFORE)
        return power.record(place, lambda: compute(Store(place), STEP))


def test_publish_power_lost_anything_may_be_lost():
    """Catches an end state that is right only when all is lost, or nothing: file by file and name by name here."""
    log = recorded()

    def trial(rng: random.Random) -> None:
        with folder() as target:
            after_power_loss(log, rng.randrange(len(log)), "lottery", target, rng)
            battery.assert_recovers(Store, target, STEP, (BEFORE,))

    R5_DRAWN.run(trial)


def check_away(log: list[Moment], steps: tuple[Step, ...], intact: bool) -> None:
    """Runs finish, and then hit. `intact`: nothing is torn before."""

    def trial(point: tuple[int, str]) -> None:
        with folder() as target:
            after_power_loss(log, *point, target, random.Random(str(point)))
            assert not intact or battery.torn(target) == []
            battery.assert_recovers(Store, target, steps[0], steps[1:], intact=False)

    drawn = [f"lottery {n}" for n in range(3)]
    R5_AWAY.each(product(range(len(log)), (*power.POLICIES, *drawn)), trial)


def test_lookup_power_lost_while_damage_is_set_aside(place):
    """Catches a damaged tree that comes back under its name, and a record that does without a tree for ever. A record
    without its tree may be left here: it is a miss."""
    record = compute(Store(place))
    overwrite(record.path / "config.json", b"bad")
    log = power.record(place, lambda: compute(Store(place)))
    check_away(log, (STEP,), intact=False)


def test_gc_power_lost_after_any_operation(place):
    """Catches a half-removed tree under its name, and a record that outlives its tree."""
    store = Store(place)
    compute(store)
    compute(store, BEFORE)
    store.link_run("empty", {})
    log = power.record(place, lambda: gc(store, keep_runs=0))
    assert len(log) > 10
    check_away(log, (STEP, BEFORE), intact=True)


def test_model_of_the_disk_is_the_one_described(place):
    """Catches a model that loses nothing, or what was synced."""

    def work() -> None:
        (place / "unsynced").write_bytes(b"12345678")
        fs.write_file(place / "synced", b"abcd")
        fs.make_dir(place / "inner")
        fs.sync(place)
        os.rename(place / "synced", place / "inner/moved")
        fs.sync(place / "inner")

    log = power.record(place, work)
    files_left = {}
    for policy in power.POLICIES:
        with folder() as target:
            after_power_loss(log, len(log) - 1, policy, target)
            files_left[policy] = {str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert files_left["zero"] == {"unsynced": b"", "inner/moved": b"abcd"}
    assert files_left["prefix"] == {"unsynced": b"1234", "inner/moved": b"abcd"}
    assert files_left["undone"] == {"unsynced": b"", "synced": b"abcd", "inner/moved": b"abcd"}
