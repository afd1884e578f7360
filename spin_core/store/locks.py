"""Locks that the kernel frees when their holder dies. They only save work: every answer is right without them."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from spin_core.store import fs

Wait = Callable[[float, str], None]
"""Is called, about every ten seconds, with the seconds waited and who holds the lock ("process 12 on host")."""

REPORT_EVERY = 10.0
LONGEST_PAUSE = 0.1


class Busy(Exception):
    """Somebody else holds the lock, and the caller did not want to wait."""


def acquire(path: Path, *, shared: bool = False, block: bool = True, wait: Wait | None = None) -> int | None:
    """A descriptor that holds the lock on `path` until it is closed; None where the file system has no locks.

    Lock files are never unlinked: two holders of two files with one name would both think they are alone.
    Raises Busy if `block` is false and somebody else holds it.
    """
    try:
        fd = fs.open_lock(path)
    except OSError:
        return None
    held = False
    try:
        held = _flock(fd, shared, block, wait)
    finally:
        if not held:
            os.close(fd)
    return fd if held else None


def _flock(fd: int, shared: bool, block: bool, wait: Wait | None) -> bool:
    mode = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    waited, reported, pause = 0.0, 0.0, 0.001
    while True:
        try:
            fcntl.flock(fd, mode)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                return False
        if not block:
            raise Busy
        time.sleep(pause)
        waited, pause = waited + pause, min(pause * 2, LONGEST_PAUSE)
        if wait is not None and waited - reported >= REPORT_EVERY:
            reported = waited
            wait(waited, _holder(fd))


def _holder(fd: int) -> str:
    try:
        return os.pread(fd, 200, 0).decode("ascii", errors="replace").partition("\n")[0] or "an unknown process"
    except OSError:
        return "an unknown process"


@contextmanager
def locked(path: Path, wait: Wait | None = None, *, shared: bool = False, block: bool = True) -> Iterator[bool]:
    """Holds the lock on `path`; yields whether there is one (False where the file system has no locks)."""
    fd = acquire(path, shared=shared, block=block, wait=wait)
    try:
        # Not by whoever only looks whether a lock is free: looking changes nothing.
        if fd is not None and block and not shared:
            fs.note_holder(fd, path)
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)
