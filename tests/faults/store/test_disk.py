"""R14, R15: a disk that is full, or fails, at any operation."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store import fs
from spin_core.store.store import Store
from tests.faults.fault import LEVEL, Fault
from tests.faults.store import battery, damages, mounts
from tests.faults.store.battery import STEP, assert_right, compute, isolated, publish, record_file
from tests.faults.store.kinds import Step, kinds, step

R14 = Fault("R14", "disk full at any operation (once; from it on), for the output of each stage")
R14_SIZE = Fault("R14", "a real disk too small by any number of pages, or of inodes")
R15 = Fault("R15", "EIO, EDQUOT, EMFILE, EINTR, EROFS at any operation")
R15_SHORT = Fault("R15", "every write takes only a few bytes; a signal storm while publishing")
R15_READ = Fault("R15", "a read error at look-up is reported and is no miss")
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("stage", kinds() if LEVEL != "pr" else ["finetune", "gate"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_publish_disk_full_at_any_operation_raises_and_leaves_nothing(stage, lasting):
    """Catches swallowed errors, half-written outputs, and gigabytes kept in tmp/ on the disk that they filled."""
    battery.check_errors(Store, errno.ENOSPC, lasting, R14, kinds()[stage])


@pytest.mark.parametrize(
    ("number", "lasting"),
    [
        (errno.EIO, False),
        (errno.EDQUOT, False),
        (errno.EMFILE, False),
        (errno.EINTR, False),
        (errno.EROFS, True),
        (errno.EIO, True),
    ],
    ids=lambda value: errno.errorcode.get(value, str(value)) if value > 1 else str(value),
)
def test_publish_disk_refuses_any_operation_raises_and_leaves_nothing_partial(number, lasting):
    """Catches `except OSError: pass`, and failures that are taken for a name in the way."""
    battery.check_errors(Store, number, lasting, R15)


def test_publish_disk_full_leaves_tmp_empty_at_once(place):
    """Catches keeping a 14 GB output in tmp/ on the disk that it filled."""
    store = Store(place)

    def full(op: str, path: Path) -> None:
        if op == "rename before":
            raise OSError(errno.ENOSPC, "full", str(path))

    fs.hook = full
    with pytest.raises(StoreError, match="disk is full"):
        publish(store)
    assert list((store.root / "tmp").iterdir()) == []


BIG = step("finetune", {"model.safetensors": bytes(range(256)) * (PAGE // 256) * 24, "config.json": b"{}"})


def on_a_disk_of(place: Path, options: str, made: Step) -> bool:
    """Whether publishing works on such a disk. If not: it says so, nothing is left, and with more space all is well."""
    mounts.own_mounts()
    mounts.memory_disk(place, options)
    try:
        compute(Store(place), made)
    except (OSError, StoreError) as error:
        assert "No space left" in str(error) or "disk is full" in str(error), error
        assert not list(battery.root_of(place).glob("tmp/*")), "left in tmp/"
        assert not record_file(place, made).exists()
        mounts.memory_disk(place, "size=4m,nr_inodes=1000", again=True)
        battery.assert_recovers(Store, place, made)
        return False
    assert_right(Store(place).lookup(made.stage, made.key), made.files)
    return True


@pytest.mark.skipif(bool(mounts.why_not()), reason=mounts.why_not())
@pytest.mark.parametrize("kind", ["pages", "inodes"])
def test_publish_on_a_real_disk_that_is_too_small(place, kind):
    """Catches what an injected error does not show: a stage's own writes that fail, removing on a full disk."""
    fits: list[int] = []

    def trial(count: int) -> None:
        options = f"size={count * PAGE}" if kind == "pages" else f"size=4m,nr_inodes={count}"
        read_end, write_end = os.pipe()

        def work() -> None:
            os.write(write_end, b"1" if on_a_disk_of(place, options, BIG) else b"0")

        isolated(work)
        if os.read(read_end, 1) == b"1":
            fits.append(count)
        os.close(read_end)
        os.close(write_end)

    R14_SIZE.each(range(1, 33), trial)
    # The counts reach from nothing to enough.
    assert fits and min(fits) > 8 and fits == list(range(min(fits), 33))


def test_publish_short_writes_are_completed(monkeypatch):
    """Catches taking the first write() for all of it."""
    real = os.pwrite

    def trial(most: int) -> None:
        monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, bytes(data)[:most], at))
        with battery.folder() as place:
            assert_right(compute(Store(place)))
            monkeypatch.setattr(os, "pwrite", real)
            assert_right(Store(place).lookup("finetune", STEP.key))

    R15_SHORT.each([1, 2, 7, 100], trial)


def test_publish_in_a_storm_of_signals_is_complete():
    """Catches a system call that a signal interrupts and that is not made again (EINTR)."""

    def trial(stage: str) -> None:
        with battery.folder() as place:
            before = signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
            try:
                record = compute(Store(place), kinds()[stage])
                looked_up = Store(place).lookup(record.stage, record.key)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)
            assert_right(looked_up, kinds()[stage].files)
            battery.assert_recovers(Store, place, kinds()[stage])

    R15_SHORT.each(kinds(), trial)


def test_publish_disk_fills_in_the_middle_of_the_record_no_record_stands(store, monkeypatch):
    """Catches a record that is visible while it is being written."""
    real, calls = os.pwrite, []

    def half_then_full(fd: int, data: memoryview, at: int) -> int:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, bytes(data)[: len(data) // 2], at)

    monkeypatch.setattr(os, "pwrite", half_then_full)
    with pytest.raises(StoreError, match="disk is full"):
        publish(store)
    monkeypatch.undo()
    assert len(calls) == 2
    battery.assert_recovers(Store, store.root.parent)


def test_lookup_disk_cannot_read_raises():
    """Catches `except Exception: return None` in a look-up."""
    damages.check_read_failure_is_reported(Store, R15_READ)
