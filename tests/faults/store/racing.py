"""Several processes at one store."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from spin_core.errors import StoreError
from spin_core.store.gc import gc
from spin_core.store.locks import Busy
from spin_core.store.store import Store
from tests.faults.fault import Fault
from tests.faults.store.battery import (
    KEY,
    STEP,
    Make,
    assert_right,
    compute,
    each,
    folder,
    publish,
    root_of,
    torn,
)
from tests.faults.store.kinds import Step, step


def unsupported(fd: int, mode: int) -> None:
    """flock on a file system that has no locks."""
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@contextmanager
def flock_as(broken: Callable[[int, int], None]) -> Iterator[None]:
    """Another flock, in this process and those it forks."""
    real = fcntl.flock
    fcntl.flock = broken
    try:
        yield
    finally:
        fcntl.flock = real


@contextmanager
def living(work: Callable[[], object]) -> Iterator[int]:
    """A forked process that does `work` and then lives until it is killed, at the latest at the end of the block."""
    ready, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        kept = work()
        os.write(write_end, b".")
        signal.pause()
        os._exit(kept is None)
    os.close(write_end)
    try:
        assert os.read(ready, 1) == b"."
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def together(works: list[Callable[[], object]]) -> list[int]:
    """The exit statuses of processes that do these works, all let go at one moment; 1 for one that raised."""
    ready, go = os.pipe()
    pids = [_waiting(work, ready, go) for work in works]
    os.close(ready)
    os.close(go)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _waiting(work: Callable[[], object], ready: int, go: int) -> int:
    """A child that starts when the last writer of the pipe is closed, that is, when all have been forked."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.close(go)
        os.read(ready, 1)
        work()
        status = 0
    finally:
        os._exit(status)


def check_processes(make: Make, fault: Fault | None = None, rounds: int = 1, count: int = 8) -> int:
    """`count` processes want one key at once; all get the right output. The number of computations over all rounds."""
    computations = 0

    def trial(number: int) -> None:
        nonlocal computations
        with folder() as place:
            log = place / "log"
            log.touch()
            statuses = together([partial(_race, make, place, log)] * count)
            assert statuses == [0] * count, statuses
            assert torn(place) == []
            root = root_of(place)
            assert len(list(root.glob("trees/*"))) == len(list(root.glob("records/*/*"))) == 1
            assert list(root.glob("quarantine/*")) == []
            computations += len(log.read_bytes())

    each(fault, range(fault.count if fault else rounds), trial)
    return computations


def _race(make: Make, place: Path, log: Path) -> None:
    store = make(place)
    with store.lock("finetune", KEY):
        record = store.lookup("finetune", KEY)
        if record is None:
            with open(log, "ab", buffering=0) as stream:
                stream.write(b".")
            record = publish(store)
    assert_right(record)
    assert_right(store.lookup("finetune", KEY))


def check_lock_is_one(make: Make) -> None:
    """A lock that was taken and released many times still keeps the second one out."""
    with folder() as place:
        store = make(place)
        for _ in range(3):
            with store.lock("finetune", KEY):
                pass
        with store.lock("finetune", KEY):
            waiting = make(place)
            path = root_of(place) / "locks" / f"finetune-{KEY}"
            # Whoever waited from before the release has the old file open; a newcomer must meet it there.
            fd = os.open(path, os.O_RDWR)
        with waiting.lock("finetune", KEY):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return
            finally:
                os.close(fd)
        raise AssertionError("two hold one lock")


Collect = Callable[[Store], object]


def collect(store: Store) -> None:
    """gc that keeps the last run, what it was made from, and `best`."""
    gc(store, keep_runs=1)


def collect_in_use(store: Store) -> None:
    """As `collect`, whoever uses the store."""
    gc(store, keep_runs=1, while_used=True)


def check_gc(
    make: Make, fault: Fault | None = None, rounds: int = 1, collected: Collect = collect, idle: bool = True
) -> None:
    """Writers publish, readers look up and read, gc clears, all at once: no partial read, nothing that a run links to
    and nothing of a living publisher goes. Not `idle`: there is always somebody who uses the store."""
    each(fault, range(fault.count if fault else rounds), lambda number: _gc_round(make, number, collected, idle))


TURNS = 6


def _gc_round(make: Make, number: int, collected: Collect, idle: bool) -> None:
    kept = step("reformat", {"rows.jsonl": bytes(range(256)) * 40, "shards.json": b"[]"}, version=3)
    fresh = [step("generate", {"answers.jsonl": b"%d" % i}, version=number * TURNS + i + 1) for i in range(TURNS)]
    with folder() as place:
        store = make(place)
        compute(store, STEP)
        publish(store, {**STEP.payload, "version": 9}, {"loose": b"1"})
        store.link_run("kept", {"01": compute(store, kept).digest})
        works = [
            partial(_write, make, place, fresh),
            partial(_read, make, place, [STEP, *fresh]),
            partial(_read, make, place, [kept], due=True),
            partial(_clear, make, place, collected, 3 if idle else 40),
            *([] if idle else [partial(_stay, make, place)]),
        ]
        statuses = together(works)
        assert statuses == [0] * len(works), f"writer, reader, reader of what is kept, gc: {statuses}"
        assert torn(place) == []
        assert_right(make(place).lookup(kept.stage, kept.key), kept.files)
        collect(store)
        assert [record.key for record in store.records()] == [kept.key], "gc that clears nothing"


def _write(make: Make, place: Path, steps: list[Step]) -> None:
    for made in steps:
        store = make(place)
        with store.using():
            assert_right(compute(store, made), made.files)


def _read(make: Make, place: Path, steps: list[Step], due: bool = False) -> None:
    for made in steps * (TURNS if due else 2):
        store = make(place)
        with store.using():
            record = store.lookup(made.stage, made.key)
            if record is not None or due:
                assert_right(record, made.files)
        assert store.notes == [], "damage where there was none"


def _stay(make: Make, place: Path) -> None:
    """Users one after the other, each of whom begins before the one before ends."""
    last = ExitStack()
    for _ in range(60):
        following = ExitStack()
        following.enter_context(make(place).using())
        time.sleep(0.002)
        last.close()
        last = following
    last.close()


def _clear(make: Make, place: Path, collected: Collect, times: int) -> None:
    done = 0
    for _ in range(500):
        try:
            collected(make(place))
            done += 1
        except (Busy, StoreError) as error:
            assert "a run is using the store" in str(error), error
        if done == times:
            break
