"""Every system call of the store that changes the disk, each through one seam (`_call`) where it can be made to fail.

Not here: reading (digest.py, record.py) and locking (locks.py).
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spin_core.errors import StoreError

hook: Callable[[str, Path], None] | None = None
"""Fault injection: called with "<operation> before" and "<operation> after" around every change. None outside tests."""

REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space (`spinloop store gc` removes what nothing needs) and run again",
    errno.EDQUOT: "your disk quota is used up; free some space (`spinloop store gc`) and run again",
    errno.EROFS: "the file system is read-only; mount it writable or name another store folder",
    errno.EACCES: "permission denied; change its owner or mode, or name another store folder",
    errno.EPERM: "permission denied; change its owner or mode, or name another store folder",
    errno.EIO: "the disk reports an input/output error; check the disk, or name another store folder",
    errno.EMFILE: "too many open files; raise the limit (`ulimit -n`) and run again",
    errno.EXDEV: "the store spans two file systems; keep its folder on one",
}
IN_THE_WAY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
FICLONE = 0x40049409  # Linux's ioctl for a file that shares another's blocks: btrfs, XFS, bcachefs
NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def _call(op: str, path: Path, fn: Callable[..., Any], *args: Any) -> Any:
    if hook is not None:
        hook(f"{op} before", path)
    result = fn(*args)
    if hook is not None:
        hook(f"{op} after", path)
    return result


@contextmanager
def boundary(path: Path) -> Iterator[None]:
    """Turns an OSError into a StoreError that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        # Of a rename or link the place that it was for: the temporary name beside it says nothing to a person.
        named = error.filename2 or error.filename
        where = named if isinstance(named, str | Path) else path
        why = REMEDIES.get(error.errno or 0) or f"{error.strerror or error}; see to it and run again"
        raise StoreError(f"{where}: {why}.") from error


def unique() -> str:
    """A name that no other process, thread or forked copy of this one makes."""
    return f"{os.getpid()}-{secrets.token_hex(8)}"


def make_dir(path: Path, mode: int = 0o700) -> bool:
    """Makes one folder; False if it was there."""
    try:
        _call("mkdir", path, os.mkdir, path, mode)
    except FileExistsError:
        return False
    return True


def write_file(path: Path, data: bytes, mode: int = 0o444) -> None:
    """A new file, complete and durable on return; never an existing one (FileExistsError)."""
    with new_file(path, mode) as fd:
        write_at(fd, path, data, 0)


def show(path: Path, data: bytes) -> None:
    """Puts a small file of its owner's (0600) in the place of `path` at once: for who reads it now, so not durable."""
    with temporary(path.with_name(f"{unique()}.shown")) as temp:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = _call("create", temp, os.open, temp, flags, 0o600)
        try:
            write_at(fd, temp, data, 0)
        finally:
            os.close(fd)
        replace(temp, path)


def open_lock(path: Path) -> int:
    """A descriptor to lock; makes the file if it can, reads it if the store is read-only. Not inherited over exec."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return int(_call("lock", path, os.open, path, flags, 0o600))
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def note_holder(fd: int, path: Path) -> None:
    """Writes into the open lock file who holds it now: for people only, so a disk that refuses it changes nothing."""
    with suppress(OSError):
        text = f"process {os.getpid()} on {os.uname().nodename}\n".encode()
        _call("note", path, os.pwrite, fd, text, 0)
        _call("note", path, os.ftruncate, fd, len(text))


def sync(path: Path) -> None:
    """Makes a file's bytes, or a folder's names, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _call("fsync", path, os.fsync, fd)
    finally:
        os.close(fd)


def chmod(path: Path, mode: int) -> None:
    """Set the permission bits of a file or folder."""
    _call("chmod", path, os.chmod, path, mode)


def move(source: Path, target: Path) -> None:
    """Renames within the store, at once. A folder replaces nothing but an empty folder (OSError, one of IN_THE_WAY)."""
    status = os.lstat(source)
    if stat.S_ISDIR(status.st_mode) and not status.st_mode & stat.S_IWUSR:
        # A folder's own `..` changes with its parent: whoever is not root must be allowed to write to it.
        chmod(source, 0o755)
    _call("rename", target, os.rename, source, target)


def move_away(source: Path, target: Path) -> None:
    """As `move`, for what is to go: where folders cannot be renamed, file by file, and a death leaves two parts."""
    try:
        move(source, target)
    except OSError as error:
        # An overlay file system (a container's) moves files of its lower layer, and not folders.
        if error.errno != errno.EXDEV or not source.is_dir() or os.path.lexists(target):
            raise
        _move_files(source, target)


def _move_files(source: Path, target: Path) -> None:
    """The folder `source` as the new folder `target`, file by file."""
    chmod(source, 0o755)
    make_dir(target, 0o755)
    for name in sorted(os.listdir(source)):
        if stat.S_ISDIR(os.lstat(source / name).st_mode):
            _move_files(source / name, target / name)
        else:
            _call("rename", target / name, os.rename, source / name, target / name)
    _call("rmdir", source, os.rmdir, source)


def replace(source: Path, target: Path) -> None:
    """Put `source` in the place of `target` at once, whatever is there."""
    _call("rename", target, os.replace, source, target)


def put_once(source: Path, target: Path) -> bool:
    """Gives the finished file `source` the name `target`; False if that name is taken. `source` is used up."""
    first = True
    try:
        _call("link", target, os.link, source, target)
    except FileExistsError:
        first = False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        first = not os.path.lexists(target)
        if first:
            # Two writers can meet here; both hold a whole record, so either may stand.
            replace(source, target)
            return True
    unlink(source)
    return first


def duplicate(source: Path, target: Path) -> bool:
    """Puts in the place of `target` a copy of the file `source` that shares its blocks, or a hard link to it; False,
    and `target` is as it was, where the file system has neither, the two are on different ones, or are one already."""
    if os.path.samefile(source, target):
        return False  # renaming one name of a file to another of it does nothing, and leaves both
    with temporary(target.with_name(f"{unique()}.shared")) as temp:
        if not _clone(source, temp):
            try:
                _call("link", temp, os.link, source, temp)
            except OSError as error:
                if error.errno not in (*NO_HARD_LINKS, errno.EXDEV):
                    raise
                return False
        replace(temp, target)
    return True


def _clone(source: Path, temp: Path) -> bool:
    with open(source, "rb") as stream:
        fd = _call("create", temp, os.open, temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
        try:
            fcntl.ioctl(fd, FICLONE, stream.fileno())
            return True
        except OSError:  # ext4 and most others cannot
            unlink(temp)
            return False
        finally:
            os.close(fd)


def symlink(text: str, path: Path) -> None:
    """A link `path` that says `text`."""
    _call("symlink", path, os.symlink, text, path)


def unlink(path: Path) -> None:
    """Remove a file or link, if it is there."""
    with suppress(FileNotFoundError):
        _call("unlink", path, os.unlink, path)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A file or link on its way to its name; gone if it does not get there."""
    try:
        yield path
    except BaseException:
        with suppress(OSError):
            unlink(path)
        raise


def remove(path: Path) -> None:
    """Removes a file, link or whole folder, read-only or not; follows no link."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(status.st_mode):
        unlink(path)
        return
    if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        chmod(path, 0o700)
    for name in sorted(os.listdir(path)):
        remove(path / name)
    _call("rmdir", path, os.rmdir, path)


@contextmanager
def new_file(path: Path, mode: int = 0o644) -> Iterator[int]:
    """A descriptor for writing a new file with `write_at`; durable when the block ends well, and closed in any case."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = _call("create", path, os.open, path, flags, mode)
    try:
        yield fd
        _call("fsync", path, os.fsync, fd)
    finally:
        os.close(fd)


def write_at(fd: int, path: Path, data: bytes, offset: int) -> None:
    """Writes all of `data` into the open file `path` from `offset` on; threads may write other places of it."""
    rest = memoryview(data)
    while rest:
        count = _call("write", path, os.pwrite, fd, rest, offset)
        if count == 0:
            raise OSError(errno.EIO, "wrote nothing", str(path))
        rest, offset = rest[count:], offset + count


def touch(path: Path) -> None:
    """Notes that a file or folder was used now."""
    _call("utime", path, os.utime, path)
