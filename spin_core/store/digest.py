"""Content digests of files and trees: sha256, because the hub's own file ids are sha256. Reads only."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict

from spin_core.errors import StoreError
from spin_core.store.keys import canonical

# sha256 is the limit from 128 KiB on; larger pieces only leave the processor's cache.
PIECE = 1 << 18


class Damaged(StoreError):
    """Something in the store is not what it says it is (missing, altered, a link): a miss, not a failure."""


def open_regular(path: Path) -> int:
    """A descriptor for reading `path`, which must be a regular file itself: no link is followed, no FIFO waited for.

    Raises Damaged if it is missing or of another kind, OSError for genuine failures (EIO, EACCES).
    """
    try:
        # Looked at before it is opened: opening a device can do things.
        _demand_regular(os.lstat(path), path)
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
            raise Damaged(f"{path}: the file is missing.") from error
        raise
    try:
        _demand_regular(os.fstat(fd), path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _demand_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file"
        raise Damaged(f"{path}: this is {kind}; only regular files can be stored.")


def file_digest(path: Path) -> tuple[int, str]:
    """(size in bytes, sha256 as 64 hex digits) of a regular file. Raises as `open_regular` does."""
    fd = open_regular(path)
    try:
        total, sha = 0, hashlib.sha256()
        buffer = bytearray(PIECE)
        view = memoryview(buffer)
        while count := os.readv(fd, [buffer]):
            sha.update(view[:count])
            total += count
        return total, sha.hexdigest()
    finally:
        os.close(fd)


def children(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where there is none. Raises OSError where it cannot be read: a folder
    that nobody may enter is not empty."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_in(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    """(relative POSIX path, path) of everything below `folder` that is not a folder, in no order.

    Raises Damaged if `folder` is missing or not itself a folder, or if a name is not text.
    """
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            raise Damaged(f"{folder}: this is not a folder.")
        with os.scandir(folder) as entries:
            listed = list(entries)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{folder}: the folder is missing.") from error
    for entry in listed:
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            raise Damaged(f"{folder}: the file name {entry.name!r} is not UTF-8; rename it.") from None
        if entry.is_dir(follow_symlinks=False):
            yield from files_in(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, folder / entry.name


class FileEntry(TypedDict):
    """One file of a tree's manifest: its relative POSIX path, size in bytes and sha256 (64 hex digits)."""

    path: str
    size: int
    sha256: str


def manifest(folder: Path, wanted: Callable[[list[str]], list[str]] = list) -> list[FileEntry]:
    """The entries of all files below `folder`, or of those that `wanted` chooses of their names, sorted by path. Empty
    folders do not count.

    Raises Damaged (a StoreError) for symbolic links, FIFOs, sockets and devices, OSError for genuine read failures.
    """
    entries: list[FileEntry] = []
    files = dict(files_in(folder))
    for name in sorted(wanted(list(files))):
        size, sha256 = file_digest(files[name])
        entries.append({"path": name, "size": size, "sha256": sha256})
    return entries


def tree_digest(entries: list[FileEntry]) -> str:
    """The name of a tree: sha256 over the canonical JSON of its manifest."""
    return hashlib.sha256(canonical(entries)).hexdigest()


def damage(tree: Path, digest: str) -> Damaged | None:
    """What is wrong with a tree of this name; None where all of it is right."""
    try:
        if tree_digest(manifest(tree)) != digest:
            return Damaged(f"{tree}: its content is not what its name says.")
    except Damaged as bad:
        return bad
    return None
