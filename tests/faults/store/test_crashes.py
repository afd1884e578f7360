"""R1, R2: the publishing process dies, at every change to the disk and at random moments."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from pathlib import Path

import pytest

from spin_core.store.store import Store
from tests.faults.fault import LEVEL, Fault
from tests.faults.store import battery
from tests.faults.store.battery import BEFORE, compute, folder
from tests.faults.store.kinds import Step, kinds, shapes

R1 = Fault("R1", "the process dies before or after any change to the disk (all, each stage or each shape of output)")
R2 = Fault("R2", "kill -9 of a publishing process at a random moment, each stage", pr=30, night=300, release=1000)


@pytest.mark.parametrize("stage", shapes() if LEVEL == "pr" else kinds())
def test_publish_process_dies_at_any_operation_store_is_intact_and_recovers(stage):
    """Catches writing in place, a record before its tree, leftovers that block the next run, and computing again what
    was published."""
    battery.check_crashes(Store, R1, kinds()[stage])


def test_publish_process_dies_and_a_new_interpreter_reads_the_same(place):
    """Catches an end state that is good only for a process which has this one's memory."""
    step = kinds()["finetune"]
    at = len(battery.events_of(Store, step)) // 2
    assert battery.in_child(lambda: battery.compute_failing(Store, place, at, battery.die, step)) == battery.KILLED
    battery.assert_recovers(Store, place, step)
    battery.assert_hit_in_new_interpreter(place, step)


def killed_after(place: Path, step: Step, seconds: float) -> None:
    """A child that publishes the step gets SIGKILL after so long, or is through by then."""
    ready, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write_end, b".")
        compute(Store(place), step)
        os._exit(0)
    os.read(ready, 1)
    os.close(ready)
    os.close(write_end)
    select.select([], [], [], seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def clean_time(step: Step) -> float:
    """How long an undisturbed run takes, with what a forked process needs to start."""
    took = []
    for _ in range(3):
        with folder() as place:
            begun = time.perf_counter()
            assert battery.in_child(lambda place=place: compute(Store(place), step)) == 0
            took.append(time.perf_counter() - begun)
    return min(took)


@pytest.mark.parametrize("stage", kinds())
def test_publish_killed_at_random_moments_recovers(stage):
    """Catches windows between the enumerated points, such as within one write."""
    step = kinds()[stage]
    longest = clean_time(step)

    def trial(rng: random.Random) -> None:
        with folder() as place:
            compute(Store(place), BEFORE)
            killed_after(place, step, rng.random() * longest)
            battery.assert_recovers(Store, place, step, (BEFORE,))

    R2.run(trial)
