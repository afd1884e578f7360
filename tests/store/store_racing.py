"""Several processes at one store."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from store_battery import KEY, Make, assert_right, folder, publish, torn


@contextmanager
def living(work: Callable[[], object]) -> Iterator[int]:
    """A forked process that does `work` and then lives until it is killed, at the latest at the end of the block."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        kept = work()
        os.write(told, b".")
        signal.pause()
        os._exit(kept is None)
    os.close(told)
    try:
        assert os.read(ready, 1) == b"."
        yield pid
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def check_processes(make: Make, rounds: int, count: int = 8) -> int:
    """`count` processes want one key at once; all get the right output. The number of computations over all rounds."""
    computations = 0
    for _ in range(rounds):
        with folder() as place:
            log = place / "log"
            log.touch()
            ready, go = os.pipe()
            children = [_racer(make, place, log, ready, go) for _ in range(count)]
            os.close(ready)
            os.close(go)
            statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
            assert statuses == [0] * count, statuses
            assert torn(place) == []
            root = place / "spinloop-store-v1"
            assert len(list(root.glob("trees/*"))) == len(list(root.glob("records/*/*"))) == 1
            assert list(root.glob("quarantine/*")) == []
            computations += len(log.read_bytes())
    return computations


def _racer(make: Make, place: Path, log: Path, ready: int, go: int) -> int:
    """A child that starts when the last writer of the pipe is closed, that is, when all have been forked."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.close(go)
        os.read(ready, 1)
        store = make(place)
        with store.lock("finetune", KEY):
            record = store.lookup("finetune", KEY)
            if record is None:
                with open(log, "ab", buffering=0) as stream:
                    stream.write(b".")
                record = publish(store)
        assert_right(record)
        assert_right(store.lookup("finetune", KEY))
        status = 0
    finally:
        os._exit(status)
