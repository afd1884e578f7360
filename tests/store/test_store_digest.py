"""Digests of files and trees."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

import pytest

from spin_core.store import digest
from tests.faults.store import battery
from tests.faults.store.battery import write_output


def test_file_digest_is_sha256_of_files_of_any_size(place):
    """Catches losing the last piece, or bytes of the one before, when a file is read in pieces."""
    for size in (0, 1, digest.PIECE - 1, digest.PIECE, digest.PIECE + 1, 3 * digest.PIECE + 17):
        data = os.urandom(size)
        (place / "f").write_bytes(data)
        assert digest.file_digest(place / "f") == (size, hashlib.sha256(data).hexdigest())


def test_tree_digest_golden(place):
    """Catches a change of how trees are named: every stored output would be lost."""
    write_output(place / "t", {"a.txt": b"a", "b/c.txt": b"", "b.txt": "é".encode()})
    files = digest.manifest(place / "t")
    assert [entry["path"] for entry in files] == ["a.txt", "b.txt", "b/c.txt"]
    assert digest.tree_digest(files) == "026026d0770ededf78a55dcda0b3fdd38141c3c7ba53c65416539841c5b6c972"


def test_tree_digest_sees_names_and_bounds_between_files(place):
    """Catches hashing the concatenated bytes: moving a byte from one file to the next would not show."""
    trees = [{"a": b"12", "b": b"3"}, {"a": b"1", "b": b"23"}, {"a": b"12", "c": b"3"}, {"a/b": b"12", "b": b"3"}]
    digests = set()
    for i, files in enumerate(trees):
        write_output(place / str(i), files)
        digests.add(digest.tree_digest(digest.manifest(place / str(i))))
    assert len(digests) == len(trees)


@pytest.mark.parametrize("plant", [lambda p, other: p.symlink_to(other), lambda p, other: os.mkfifo(p)])
def test_file_digest_replaced_between_look_and_open_is_refused(place, monkeypatch, plant):
    """Catches the race: a link or FIFO put there after the check must neither be followed nor waited for."""
    file, other = place / "file", place / "other"
    for path in (file, other):
        path.write_bytes(b"x")
    real = os.lstat

    def swap(path: Path) -> os.stat_result:
        status = real(path)
        file.unlink()
        plant(file, other)
        return status

    def digest_it() -> None:
        signal.alarm(5)
        monkeypatch.setattr(os, "lstat", swap)
        with pytest.raises(digest.Damaged):
            digest.file_digest(file)

    assert battery.in_child(digest_it) == 0
