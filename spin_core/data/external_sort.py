"""Records in order, of which only some are in memory: sorted runs on disk, merged when they are read.

Not a database: a record is a list of texts and numbers, compared as lists are, and read as often as wanted. Text is
compared by code point, which is the order of its UTF-8 too.
"""

from __future__ import annotations

import heapq
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

HELD = 48 << 20
"""Bytes of records in memory. A run on disk is an open file while they are merged: 30 for a million rows of 1 kB."""
RECORD = 500  # bytes that a record takes in memory besides its text


class SpilledRecords:
    """Records one after the other, in memory up to HELD bytes and then in an unnamed file of `folder`."""

    def __init__(self, folder: Path, held: int | None = None):
        """`held`: instead of HELD."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(held or HELD, dir=str(folder))  # noqa: SIM115 - kept open
        self.count = 0

    def add(self, record: list[Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
        self.count += 1

    def raw(self) -> Iterator[bytes]:
        """Every record as JSON. One reader at a time, none while records are added."""
        self._file.seek(0)
        yield from self._file

    def __iter__(self) -> Iterator[list[Any]]:
        return map(parse, self.raw())


def parse(line: bytes) -> list[Any]:
    """A record of `SpilledRecords.raw`."""
    record: list[Any] = json.loads(line.decode("utf-8", "surrogatepass"))
    return record


class Sorter:
    """Takes records in any order and gives them sorted."""

    def __init__(self, folder: Path, held: int | None = None):
        """`held`: instead of HELD."""
        self.folder, self._held = folder, held or HELD
        self._records: list[list[Any]] = []
        self._size = 0
        self._runs: list[SpilledRecords] = []

    def add(self, record: list[Any], size: int) -> None:
        """`size`: characters of its texts."""
        self._records.append(record)
        self._size += size + RECORD
        if self._size > self._held:
            self._records.sort()
            run = SpilledRecords(self.folder, held=1)
            for one in self._records:
                run.add(one)
            self._runs.append(run)
            self._records, self._size = [], 0

    def __iter__(self) -> Iterator[list[Any]]:
        self._records.sort()
        return heapq.merge(*self._runs, self._records)
