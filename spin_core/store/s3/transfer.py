"""Files to and from object storage: in parts, several at once, resumed where a killed process stopped.

Not here: which files, and whether what came is what was wanted (remote.py hashes it). A file's key is its sha256,
so parts that another writer sent are as good as one's own, and nothing needs to be agreed on before an upload.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from spin_core.errors import StoreError
from spin_core.store import fs
from spin_core.store.digest import open_regular
from spin_core.store.progress import Report, bar
from spin_core.store.s3.objects import Objects, Stat, md5

# Of the store's format: who resumes an upload must cut the file as the one before did. At least 5 MiB (S3), and few
# enough requests: 14 GB are 900.
PART = 16 << 20
MOST_PARTS = 10_000  # S3's limit
THREADS = 8  # parts at once, each in memory: 128 MiB
OPEN = 128  # files at once: a process may have 1,024, on macOS 256, and a dataset has thousands of shards
MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class File:
    """One file on its way: its object's key, where it is (or is to be) on the disk, its size in bytes."""

    key: str
    path: Path
    size: int


class Missing(Exception):
    """An object that should be there is not, or is shorter than it should be."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def part_size(size: int) -> int:
    """Bytes of each part of a file of this size, but the last: the same for every writer."""
    part = PART
    while size > part * MOST_PARTS:
        part *= 2
    return part


def pieces(size: int) -> Iterator[tuple[int, int, int]]:
    """(part number from 1, first byte, bytes) of a file's parts."""
    part = part_size(size)
    for number, start in enumerate(range(0, size, part), 1):
        yield number, start, min(part, size - start)


def upload(objects: Objects, files: list[File], clear: Callable[[Stat], None], report: Report, title: str) -> int:
    """Puts every file where it is not yet; returns the bytes that were sent. `clear` takes what has the name of a file,
    but not its size, out of the way. Raises StoreError, the parts that arrived stay for the next attempt."""
    stats = dict(zip(files, in_parallel(lambda file: objects.head(file.key), files), strict=True))
    for file in files:
        if (stat := stats[file]) and stat.size != file.size:
            clear(stat)
            stats[file] = None
    missing = [file for file in files if not stats[file]]
    submit = _threads().submit
    with bar(report, title, "upload", sum(file.size for file in missing)) as advance:
        jobs = [_Upload(objects, file) for file in missing]
        _await([submit(job.begin) for job in jobs], advance, [0] * len(jobs))
        parts = [(job, piece) for job in jobs for piece in job.left]
        advance(sum(job.there for job in jobs))
        _await([submit(job.send, *piece) for job, piece in parts], advance, [piece[2] for _, piece in parts])
        _await([submit(job.end) for job in jobs], advance, [0] * len(jobs))
        return sum(piece[2] for _, piece in parts)


def download(objects: Objects, files: Iterable[File], report: Report, title: str) -> None:
    """Writes new files, durable on return, of the given size; their content is the caller's to check.
    Raises Missing for an object that is not there or shorter, StoreError where the service fails, OSError."""
    wanted = list(files)
    with bar(report, title, "download", sum(file.size for file in wanted)) as advance:
        for few in (wanted[at : at + OPEN] for at in range(0, len(wanted), OPEN)):
            with ExitStack() as opened:
                places = [(file, opened.enter_context(fs.new_file(file.path))) for file in few]
                jobs = [(file, fd, start, count) for file, fd in places for _, start, count in pieces(file.size)]
                _await([_threads().submit(_fetch, objects, *job) for job in jobs], advance, [job[3] for job in jobs])


def in_parallel(work: Callable[[Any], Any], things: Iterable[Any]) -> Iterator[Any]:
    """`work` of each, several at once, in their order."""
    return _threads().map(work, things)


def _fetch(objects: Objects, file: File, fd: int, start: int, count: int) -> None:
    data = objects.read(file.key, start, count)
    if data is None:
        raise Missing(file.key)
    fs.write_at(fd, file.path, data, start)


def _is_there(objects: Objects, file: File) -> bool:
    stat = objects.head(file.key)
    return stat is not None and stat.size == file.size


class _Upload:
    """One file's upload: whole where it is small, else in parts, of which some may be there."""

    def __init__(self, objects: Objects, file: File) -> None:
        self.objects, self.file = objects, file
        self.id = ""
        self.etags: dict[int, str] = {}
        self.gone = False
        self.left: list[tuple[int, int, int]] = []
        self.there = 0

    def begin(self) -> None:
        every = list(pieces(self.file.size)) or [(1, 0, 0)]
        if len(every) > 1:
            self.id, self.etags = self._resumed(every) or (self.objects.begin(self.file.key), {})
        self.left = [piece for piece in every if piece[0] not in self.etags]
        self.there = self.file.size - sum(piece[2] for piece in self.left)

    def _resumed(self, every: list[tuple[int, int, int]]) -> tuple[str, dict[int, str]] | None:
        """The upload in hand that has the most parts of this very file."""
        best: tuple[str, dict[int, str]] | None = None
        with suppress(StoreError):  # whoever may not list uploads begins anew
            for key, one, _ in self.objects.uploads(self.file.key):
                have = self.objects.parts(key, one) if key == self.file.key else None
                if have is not None and self._ours(have, every) and (best is None or len(have) > len(best[1])):
                    best = one, {number: etag for number, (_, etag) in have.items()}
        return best

    def _ours(self, have: dict[int, tuple[int, str]], every: list[tuple[int, int, int]]) -> bool:
        """Whether parts are those of our file: by size, and by MD5 where the service does not encrypt."""
        places = {number: (start, count) for number, start, count in every}
        return all(
            number in places
            and places[number][1] == size
            and (not MD5.fullmatch(etag) or md5(self._read(*places[number])) == etag)
            for number, (size, etag) in have.items()
        )

    def _read(self, start: int, count: int) -> bytes:
        fd = open_regular(self.file.path)
        try:
            return os.pread(fd, count, start)
        finally:
            os.close(fd)

    def send(self, number: int, start: int, count: int) -> None:
        data = self._read(start, count)
        if len(data) != count:
            raise StoreError(f"{self.file.path}: became shorter while it was uploaded; run again.")
        if not self.id:
            self.objects.put_once(self.file.key, data)
        elif not self.gone:
            etag = self._part(number, data)
            if etag is None:
                self.gone = True  # another writer has completed it, or gc took it: `end` sees which
            else:
                self.etags[number] = etag

    def _part(self, number: int, data: bytes) -> str | None:
        try:
            return self.objects.put_part(self.file.key, self.id, number, data)
        except StoreError:
            if self._is_gone():
                return None
            raise

    def _is_gone(self) -> bool:
        """Of a request that failed: whether there is no such upload any more, to which some services answer 500."""
        return self.objects.parts(self.file.key, self.id) is None

    def end(self) -> None:
        if self.id and not self.gone:
            try:
                self.objects.complete(self.file.key, self.id, self.etags)
            except StoreError:
                if not self._is_gone():
                    raise
        if not _is_there(self.objects, self.file):
            what = f"{self.objects.url}: {self.file.key}"
            raise StoreError(f"{what}: uploaded, and not there; run again (its upload may have been cleared away).")


def _await(jobs: list[Future[Any]], advance: Callable[[int], None], sizes: list[int]) -> None:
    """Waits for all and advances the bar; the first failure ends what has not begun, and is raised once none runs."""
    counts = dict(zip(jobs, sizes, strict=True))
    try:
        for one in as_completed(jobs):
            one.result()
            advance(counts[one])
    finally:
        wait([one for one in jobs if not one.cancel()])


@cache
def _threads() -> ThreadPoolExecutor:
    """One pool for the process: a run has forty steps at once, and each part in hand takes its memory."""
    return ThreadPoolExecutor(THREADS, "spinloop-transfer")
