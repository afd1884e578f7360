"""R18: no clock decides: other times, times that go backwards, files of 1970 and 2106."""

from __future__ import annotations

import os
import time

from spin_core.store.gc import gc
from spin_core.store.keys import key_of, payload
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.fault import Fault
from tests.faults.store import battery
from tests.faults.store.battery import BEFORE, STEP, assert_right, compute, folder, isolated, root_of

R18 = Fault("R18", "the clock is ten years off, stands, or goes backwards; files of 1970 and 2106")
YEARS = 10 * 365 * 86400
CLOCKS = {
    "ten years ahead": lambda real, count: real + YEARS,
    "ten years back": lambda real, count: real - YEARS,
    "1970": lambda real, count: 0.0,
    "after 2106": lambda real, count: 2.0**32 + real,
    "backwards": lambda real, count: real - 3600 * count,
    "stands": lambda real, count: 1e9,
}


def skew(how) -> None:
    """From here on every clock of this process that Python reads goes as `how` says."""
    count = 0

    def clock(real):
        def read(*_):
            nonlocal count
            count += 1
            return how(real(), count)

        return read

    # What is monotonic by its name stays so, from another start.
    time.time = clock(time.time)
    time.time_ns = lambda: int(time.time() * 1e9)
    start, real = how(0.0, 0), time.monotonic
    time.monotonic = lambda: abs(start) + real()


def test_clock_that_is_wrong_changes_no_key_and_no_answer():
    """Catches ages, time-outs and "newer than" in a decision of the store."""

    def trial(name: str) -> None:
        with folder() as place:
            before = compute(Store(place), BEFORE)

            def work() -> None:
                skew(CLOCKS[name])
                store = Store(place)
                assert store.lookup(BEFORE.stage, BEFORE.key) == before
                with store.using(), store.lock(STEP.stage, STEP.key):
                    record = compute(store)
                store.link_run("demo", {"01": record.digest})
                assert key_of(payload(**arguments)) == STEP.key
                assert gc(store, keep_runs=1).records == 1
                assert_right(store.lookup(STEP.stage, STEP.key))

            arguments = {name: STEP.payload[name] for name in ("stage", "version", "config", "inputs")}
            isolated(work)
            assert verify(Store(place)) == []
            ran: list[str] = []
            assert_right(compute(Store(place), STEP, ran))
            assert ran == []

    R18.each(CLOCKS, trial)


def test_files_of_any_time_are_hits_and_gc_keeps_what_it_kept():
    """Catches ordering runs by file times, removing what looks old, and leaving what looks new."""

    def trial(when: int) -> None:
        with folder() as place:
            store = Store(place)
            for run, step in (("zebra", BEFORE), ("apple", STEP)):
                store.link_run(run, {"01": compute(store, step).digest})
            living, left = store.new_tree(), root_of(place) / "tmp/1-0.record"
            left.write_bytes(b"left")
            for path in (root_of(place), *root_of(place).rglob("*")):
                os.utime(path, (when, when), follow_symlinks=False)
            reader = Store(place)
            assert_right(reader.lookup(STEP.stage, STEP.key))
            result = gc(reader, keep_runs=1)
            assert (result.records, result.trees, result.temp) == (1, 1, 1)
            assert living.is_dir() and not left.exists()
            assert_right(reader.lookup(STEP.stage, STEP.key))
            assert reader.lookup(BEFORE.stage, BEFORE.key) is None
            store.discard(living)
            battery.assert_recovers(Store, place)

    R18.each([0, 1, 2**31 - 1, 2**31, 2**32 - 1, int(time.time()) + YEARS], trial)
