"""Several processes, with locks and without."""

from __future__ import annotations

import errno
import os
import time

import pytest
import store_battery as battery
import store_racing as racing
from store_battery import KEY

from spin_core.store import locks
from spin_core.store.store import Store


def test_publish_eight_processes_on_one_key_compute_once():
    """Catches locks that do not lock."""
    assert racing.check_processes(Store, rounds=5) == 5


def test_publish_eight_processes_with_broken_locks_are_all_right(monkeypatch):
    """Catches correctness that hangs on locks (network file systems have broken ones)."""
    monkeypatch.setattr(locks.fcntl, "flock", lambda fd, mode: None)
    assert racing.check_processes(Store, rounds=8) > 8


def test_publish_eight_processes_where_locks_are_unsupported_are_all_right(monkeypatch):
    """Catches failing on a file system that has no locks."""

    def unsupported(fd: int, mode: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    racing.check_processes(Store, rounds=4)


def test_lock_holder_killed_is_free_at_once(store, place):
    """Catches lock files that outlive their holder (a run would wait for ever)."""
    path = store.root / "locks" / f"finetune-{KEY}"

    def hold() -> object:
        lock = Store(place).lock("finetune", KEY)
        lock.__enter__()
        return lock

    with racing.living(hold), pytest.raises(locks.Busy):
        locks.acquire(path, block=False)
    fd = locks.acquire(path, block=False)
    assert fd is not None
    os.close(fd)


def test_lock_holder_stopped_is_reported_to_who_waits(store, monkeypatch):
    """Catches waiting in silence; the callback itself frees the lock here."""
    monkeypatch.setattr(locks, "REPORT_EVERY", 0.0)
    path = store.root / "locks" / f"finetune-{KEY}"
    holder = locks.acquire(path)
    assert holder is not None
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            os.close(holder)

    with store.lock("finetune", KEY, wait) as held:
        assert held
    assert len(waits) == 3 and waits == sorted(waits) and waits[0] > 0


def test_lock_file_stays_after_release_and_is_not_inherited(store):
    """Catches unlinking on release (two would hold it) and a stage's child keeping it after the parent died."""
    path = store.root / "locks" / f"finetune-{KEY}"
    fd = locks.acquire(path)
    assert fd is not None and not os.get_inheritable(fd)
    node = path.stat().st_ino
    os.close(fd)
    with store.lock("finetune", KEY):
        pass
    assert path.stat().st_ino == node


def test_lookup_small_tree_takes_less_than_five_milliseconds(store):
    """Catches look-ups that sync or scan the store: the fastest of 20 counts, so that a busy machine does not."""
    battery.publish(store)
    took = []
    for _ in range(20):
        begun = time.perf_counter()
        store.lookup("finetune", KEY)
        took.append(time.perf_counter() - begun)
    assert min(took) < 0.005
