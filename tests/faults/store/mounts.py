"""Mounts of one's own, in a forked child (`battery.isolated`): small, read-only and layered disks."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from pathlib import Path

from tests.faults.store.battery import in_child

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USER = 0x00020000, 0x10000000
READ_ONLY, REMOUNT, PRIVATE, RECURSIVE = 1, 32, 1 << 18, 1 << 14


def _call(name: str, *args: object) -> None:
    if getattr(LIBC, name)(*args) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def own_mounts() -> None:
    """From here on this process may mount, and nothing of it is seen outside. Raises OSError where it may not."""
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", NEW_MOUNTS if uid == 0 else NEW_MOUNTS | NEW_USER)
    if uid != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    _call("mount", b"none", b"/", None, RECURSIVE | PRIVATE, None)


def memory_disk(place: Path, options: str, again: bool = False) -> None:
    """A tmpfs on `place` ("size=8k,nr_inodes=20"); `again`: other options for the one there."""
    _call("mount", b"tmpfs", str(place).encode(), b"tmpfs", REMOUNT if again else 0, options.encode())


def read_only(place: Path) -> None:
    """What is mounted on `place` cannot be written any more."""
    _call("mount", b"tmpfs", str(place).encode(), b"tmpfs", REMOUNT | READ_ONLY, None)


def overlay(lower: Path, work: Path, place: Path) -> None:
    """`place` shows `lower`, changes go to folders in `work`: a container's disk."""
    for name in ("upper", "work"):
        (work / name).mkdir()
    options = f"lowerdir={lower},upperdir={work}/upper,workdir={work}/work"
    if Path("/proc/self/uid_map").read_text().split()[2] == "1":
        options += ",userxattr"  # a user's own layers may not use the trusted attributes
    _call("mount", b"overlay", str(place).encode(), b"overlay", 0, options.encode())


@lru_cache(maxsize=1)
def why_not() -> str:
    """Empty where this process may have mounts of its own, else why the test is skipped."""

    def probe() -> None:
        own_mounts()
        memory_disk(Path("/mnt"), "size=4k")

    return "" if in_child(probe) == 0 else "mounts of one's own (unshare) are not allowed here"


@lru_cache(maxsize=1)
def why_no_overlay() -> str:
    """Empty where an overlay file system can be mounted."""

    def probe() -> None:
        own_mounts()
        memory_disk(Path("/mnt"), "size=1m")
        for name in ("lower", "layers", "merged"):
            Path("/mnt", name).mkdir()
        Path("/mnt/lower/folder/inner").mkdir(parents=True)
        overlay(Path("/mnt/lower"), Path("/mnt/layers"), Path("/mnt/merged"))
        Path("/mnt/merged/folder/inner").rmdir()

    return why_not() or ("" if in_child(probe) == 0 else "overlay file systems cannot be mounted here")
