"""R13: gc against readers and writers; and gc itself killed (tests/store/test_store_gc.py enumerates that)."""

from __future__ import annotations

import os
import random
import signal

import pytest

from spin_core.errors import StoreError
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.fault import Fault
from tests.faults.store import battery, racing
from tests.faults.store.battery import assert_right, folder, publish, root_of, write_output

R13 = Fault("R13", "gc, a writer and two readers at once", pr=20, night=600, release=3000)
R13_USED = Fault("R13", "the same in a store that somebody always uses", pr=15, night=600, release=3000)
R13_LIVE = Fault(
    "R13", "gc while an output is being written, and while a cached one is read", pr=20, night=200, release=500
)


def test_gc_among_writers_and_readers_takes_nothing_that_is_needed():
    """Catches a read that is torn by gc, an output that goes before it has its record, and gc without
    roots."""
    racing.check_gc(Store, R13)


def test_gc_in_use_among_writers_and_readers_takes_nothing_that_is_needed():
    """Catches a read that is torn by a gc that waits for nobody, and an output that goes as it is published again."""
    racing.check_gc(Store, R13_USED, collected=racing.collect_in_use, idle=False)


def test_gc_leaves_a_living_publisher_alone_and_clears_a_dead_one():
    """Catches gc by age or by name: hours of work would vanish under a running stage, or stay for ever."""

    def trial(rng: random.Random) -> None:
        with folder() as place:
            store = Store(place)
            with racing.living(lambda: [Store(place), write_output(Store(place).new_tree())]):
                pass
            dead = [path for path in root_of(place).glob("tmp/*") if path.is_dir()]
            tree = store.new_tree()
            write_output(tree)
            racing.collect(Store(place))
            assert tree.is_dir() and not any(path.exists() for path in dead)
            assert_right(store.publish(battery.PAYLOAD, tree, {}))
            assert verify(store) == []

    R13_LIVE.run(trial)


def test_gc_waits_for_nobody_and_takes_nothing_while_a_reader_reads():
    """Catches gc that goes on when somebody is inside `using`, also when that process hangs."""

    def trial(rng: random.Random) -> None:
        with folder() as place:
            record = publish(Store(place))
            Store(place).link_run("empty", {})

            def read() -> object:
                inside = Store(place).using()
                inside.__enter__()
                return inside

            with racing.living(read) as reader:
                os.kill(reader, signal.SIGSTOP)
                with pytest.raises(StoreError, match="a run is using the store"):
                    racing.collect(Store(place))
                assert_right(record)
            racing.collect(Store(place))
            assert not record.path.exists()

    R13_LIVE.run(trial)
