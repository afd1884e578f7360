"""Who uses a store on object storage: a small object for each process, so that `gc` on another machine sees it.

Object storage has no locks that the kernel frees. A lease is written again every few minutes and counts while the
service's own clock says that it is fresh; no computer's clock is read. Not needed for any answer to be right: a run
whose lease is lost can only lose outputs, which it computes again.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from spin_core.errors import StoreError
from spin_core.store import fs
from spin_core.store.s3.objects import Objects, Stat

FOLDER, MARK = "leases/", "gc"
MARKS = "marks what it relies on"
"""In the lease of a spinloop that knows of condemned/."""
FRESH = timedelta(hours=2)
EVERY = 600.0  # seconds; twelve may fail before a lease is stale
LOOK = 2.0  # seconds between two looks whether gc has ended
LONGEST = 600.0  # seconds: gc deletes some thousand objects a minute


class Lease:
    """This process's use of a store: from `hold` on until it ends."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.key = f"{FOLDER}{fs.unique()}"
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._begun = self._held = False
        self._ended = threading.Event()

    def hold(self) -> None:
        """Say that this process uses the store; waits while gc is at work there. Does nothing the second time. Raises
        StoreError where it cannot be written: `gc` elsewhere would delete what this process is about to read."""
        with self._lock:
            if not self._held:
                self._begin()
                self._held = True

    def _begin(self) -> None:
        if not self._begun:  # first: also a write that seemed to fail may have left a lease
            self._begun = True
            threading.Thread(target=_renew, args=(self._ended, self._write), daemon=True).start()
            atexit.register(self.release)
        self._write()
        # First the lease, then the look: whichever of the two was written last, one of them sees the other. Again after
        # a wait: what gc was it that ended, and is there still the lease?
        while self._waited():
            self._write()

    def wait(self) -> None:
        """Waits until no gc is at work. Raises StoreError after LONGEST."""
        self._waited()

    def _waited(self) -> bool:
        """Waits until no gc is at work; whether there was one. Raises StoreError after LONGEST."""
        waited = 0.0
        while gc_at_work(self.objects):
            if waited >= LONGEST:
                raise StoreError(f"{self.objects.url}: gc is at work there for {waited:.0f} s; run again later.")
            time.sleep(LOOK)
            waited += LOOK
        return waited > 0

    def _write(self) -> None:
        with self._writing:  # else a renewal on its way writes the lease again after `release` has deleted it
            if not self._ended.is_set():
                self.objects.put(self.key, f"process {os.getpid()}\n{MARKS}\n".encode())

    def release(self) -> None:
        """Say that this process no longer uses the store."""
        self._ended.set()
        self.objects.attempts = 1  # the process is about to end
        with suppress(StoreError, RuntimeError), self._writing:  # fsspec's thread may be gone at the interpreter's end
            self.objects.delete(self.key)


class Mark:
    """That a gc is at work, as a context: one at a time, written again as a lease is."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._token = uuid.uuid4().hex.encode()
        self._writing = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Mark:
        """Raises StoreError where another gc is at work."""
        if not gc_at_work(self.objects):
            if self.objects.head(MARK):
                self.objects.delete(MARK)  # of one that died
            self.objects.put_once(MARK, self._token)
        if not self._is_ours():
            why = "another gc is at work, or died less than two hours ago"
            raise StoreError(f"{self.objects.url}: {why}; run gc again later.")
        threading.Thread(target=_renew, args=(self._ended, self._write), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with self._writing:
            if self._is_ours():
                self.objects.delete(MARK)

    def check(self) -> None:
        """To be called before anything is deleted. Raises StoreError if the mark is not ours any more: two that found
        the same dead gc may have taken each other's mark for its."""
        if not self._is_ours():
            raise StoreError(f"{self.objects.url}: another gc began at the same time; run gc again later.")

    def _is_ours(self) -> bool:
        return self.objects.get(MARK) == self._token

    def _write(self) -> None:
        with self._writing:
            if not self._ended.is_set() and self._is_ours():
                self.objects.put(MARK, self._token)


def _renew(ended: threading.Event, write: Callable[[], None]) -> None:
    while not ended.wait(EVERY):
        with suppress(StoreError):
            write()


def gc_at_work(objects: Objects) -> bool:
    """Whether gc has begun and not ended, or died less than two hours ago."""
    mark = objects.head(MARK)
    return mark is not None and objects.now() - mark.modified < FRESH


def fresh(objects: Objects) -> list[Stat]:
    """The leases of processes that live, or died less than two hours ago."""
    leases = list(objects.listed(FOLDER))
    if not leases:
        return []
    now = objects.now()
    return [one for one in leases if now - one.modified < FRESH]
