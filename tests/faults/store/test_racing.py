"""R10, R11, R12: several processes, with locks, without, and with holders that die or hang."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from pathlib import Path

import pytest

from spin_core.store import locks
from spin_core.store.store import Store
from tests.faults.fault import LEVEL, Fault
from tests.faults.store import battery, racing
from tests.faults.store.battery import KEY, folder

R10 = Fault("R10", "eight processes want one key at once: one computes", pr=50, night=500, release=1000)
R11 = Fault("R11", "the same, with locks that do not lock", pr=50, night=500, release=1000)
R11_NONE = Fault("R11", "the same, on a file system without locks", pr=10, night=100, release=500)
R12 = Fault("R12", "the holder of a lock is killed: the next has it within two seconds", pr=5, night=50, release=200)
R12_STOPPED = Fault("R12", "the holder is stopped: who waits is given its name", pr=3, night=20, release=50)


def test_publish_eight_processes_on_one_key_compute_once():
    """Catches locks that do not lock."""
    assert racing.check_processes(Store, R10) == R10.count


def test_publish_eight_processes_with_broken_locks_are_all_right():
    """Catches correctness that hangs on locks (network file systems have broken ones)."""
    with racing.flock_as(lambda fd, mode: None):
        assert racing.check_processes(Store, R11) > R11.count, "the racers never met"


def test_publish_eight_processes_where_locks_are_unsupported_are_all_right():
    """Catches failing on a file system that has no locks."""
    with racing.flock_as(racing.unsupported):
        racing.check_processes(Store, R11_NONE)


def lock_file(place: Path) -> Path:
    return battery.root_of(place) / "locks" / f"finetune-{KEY}"


def hold(place: Path) -> object:
    """Takes the lock of the step's key; the holder, to be kept."""
    lock = Store(place).lock("finetune", KEY)
    lock.__enter__()
    return lock


def waiter(place: Path, write_end: int) -> int:
    """A process that waits for the lock, and writes b"w" when it begins and b"!" when it has it."""
    pid = os.fork()
    if pid == 0:
        os.write(write_end, b"w")
        with Store(place).lock("finetune", KEY):
            os.write(write_end, b"!")
        os._exit(0)
    return pid


def test_lock_holder_killed_others_go_on_at_once():
    """Catches lock files that outlive their holder (a run would wait for ever), and long pauses between two looks."""

    def trial(rng: random.Random) -> None:
        with folder() as place:
            ready, write_end = os.pipe()
            with racing.living(lambda: hold(place)) as holder:
                pids = [waiter(place, write_end) for _ in range(2)]
                assert os.read(ready, 1) == b"w"
                select.select([], [], [], rng.random() * 0.3)
                begun = time.monotonic()
                os.kill(holder, signal.SIGKILL)
                seen = b""
                while seen.count(b"!") < 2:
                    assert select.select([ready], [], [], 10)[0], "a stale lock"
                    seen += os.read(ready, 9)
                took = time.monotonic() - begun
            for pid in pids:
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            os.close(ready)
            os.close(write_end)
            assert took < 2, f"{took:.1f} s"
            assert lock_file(place).exists()

    R12.run(trial)


def test_lock_holder_stopped_is_named_to_who_waits(monkeypatch):
    """Catches waiting in silence for a process that hangs, and not naming it."""
    monkeypatch.setattr(locks, "REPORT_EVERY", 0.05)

    def trial(rng: random.Random) -> None:
        reports: list[tuple[float, str]] = []
        with folder() as place, racing.living(lambda: hold(place)) as holder:
            os.kill(holder, signal.SIGSTOP)

            def wait(seconds: float, who: str) -> None:
                reports.append((seconds, who))
                if len(reports) == 3:
                    os.kill(holder, signal.SIGKILL)

            with Store(place).lock("finetune", KEY, wait) as held:
                assert held
            seconds = [each[0] for each in reports]
            assert seconds == sorted(seconds) and seconds[0] >= 0.05
            assert {who for _, who in reports} == {f"process {holder} on {os.uname().nodename}"}

    R12_STOPPED.run(trial)


@pytest.mark.skipif(LEVEL == "pr", reason="takes 21 seconds: make faults runs it")
def test_lock_who_waits_hears_every_ten_seconds(place):
    """Catches another interval than the one that is promised."""
    begun, reports = time.monotonic(), []
    with racing.living(lambda: hold(place)) as holder:

        def wait(seconds: float, who: str) -> None:
            reports.append(time.monotonic() - begun)
            if len(reports) == 2:
                os.kill(holder, signal.SIGKILL)

        with Store(place).lock("finetune", KEY, wait):
            pass
    assert 9.9 < reports[0] < 15 and 9.9 < reports[1] - reports[0] < 15


def test_lock_where_its_file_cannot_be_written_holds_and_says_so(place):
    """Catches a read-only store whose locks fail, or whose waiter trips over an unsigned lock."""
    lock_file(place).parent.mkdir(parents=True)
    lock_file(place).touch()
    fd = os.open(lock_file(place), os.O_RDONLY)
    locks.fcntl.flock(fd, locks.fcntl.LOCK_EX)
    reports: list[str] = []

    def wait(seconds: float, who: str) -> None:
        reports.append(who)
        os.close(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "REPORT_EVERY", 0.0)
        with Store(place).lock("finetune", KEY, wait) as held:
            assert held
    assert reports == ["an unknown process"]


def test_lock_requested_without_waiting_changes_nothing(store, place):
    """Catches a check for living owners (`verify`, `gc`) that signs their locks."""
    with store.lock("finetune", KEY):
        pass
    before = b"process 1 on another host\n"
    assert lock_file(place).read_bytes() == f"process {os.getpid()} on {os.uname().nodename}\n".encode()
    lock_file(place).write_bytes(before)
    with locks.locked(lock_file(place), block=False) as free:
        assert free
    with locks.locked(lock_file(place), shared=True):
        pass
    assert lock_file(place).read_bytes() == before


def test_lock_file_stays_after_release_and_is_not_inherited(store, place):
    """Catches unlinking on release (two would hold it) and a stage's child keeping it after the parent died."""
    fd = locks.acquire(lock_file(place))
    assert fd is not None and not os.get_inheritable(fd)
    node = lock_file(place).stat().st_ino
    os.close(fd)
    with store.lock("finetune", KEY):
        pass
    assert lock_file(place).stat().st_ino == node
    racing.check_lock_is_one(Store)
