"""Damage to what lies in a store, and the checks that no look-up serves it; for every store, ours and broken ones."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spin_core.errors import StoreError
from spin_core.store import digest, record
from tests.faults.fault import Fault
from tests.faults.store import battery
from tests.faults.store.battery import STEP, Make, assert_right, compute, each, folder, overwrite, record_file
from tests.faults.store.kinds import Step

Damage = Callable[[Path], object]


def flip(file: Path, bit: int) -> None:
    """Another value of one bit; an empty file gets a byte."""
    data = bytearray(file.read_bytes() or b"\0")
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    overwrite(file, bytes(data))


def check_flips(make: Make, fault: Fault | None = None, step: Step = STEP, per_file: int = 1) -> None:
    """One bit of any file changes: a miss that names the file, then recomputed."""

    def trial(point: tuple[str, int]) -> None:
        name, number = point
        with folder() as place:
            stored = compute(make(place), step)
            file = record_file(place, step) if name == "record" else stored.path / name
            bits = 8 * max(file.stat().st_size, 1)
            flip(file, random.Random(f"{name} {number}").randrange(bits))
            store = make(place)
            assert store.lookup(step.stage, step.key) is None, f"a flipped bit in {name} was served"
            assert len(store.notes) == 1 and file.name in store.notes[0], store.notes
            assert list((battery.root_of(place) / "quarantine").iterdir()), "nothing in quarantine"
            battery.assert_recovers(make, place, step)

    each(fault, [(name, number) for name in (*step.files, "record") for number in range(per_file)], trial)


def aside(path: Path) -> Path:
    """A place outside the store that `path` is in."""
    return next(parent for parent in path.parents if parent.name.startswith("spinloop-store-")).with_name("aside")


def link_elsewhere(path: Path) -> None:
    """A link to the same bytes, which can change later."""
    copy = aside(path)
    shutil.copy(path, copy)
    path.unlink()
    path.symlink_to(copy)


def _turned(path: Path, into: Damage) -> None:
    path.unlink()
    into(path)


def hard_link(path: Path) -> None:
    """Another output's file under this name."""
    other = aside(path)
    other.write_bytes(b"other bytes")
    _turned(path, lambda path: os.link(other, path))


DAMAGES: dict[str, Damage] = {
    "deleted": Path.unlink,
    "emptied": lambda path: overwrite(path, b"" if path.stat().st_size else b"\n"),
    "cut by a byte": lambda path: overwrite(path, path.read_bytes()[:-1] or b"\n"),
    "joined by another file": lambda path: (path.parent / "more.json").write_bytes(b"{}"),
    "a link to the same bytes": link_elsewhere,
    "a folder": lambda path: _turned(path, Path.mkdir),
    "a FIFO": lambda path: _turned(path, os.mkfifo),
    "a hard link to another output's file": hard_link,
}


def link_folder(tree: Path) -> None:
    """A link to the folder with the same files."""
    tree.rename(aside(tree))
    tree.symlink_to(aside(tree))


TREE_DAMAGES: dict[str, Damage] = {
    "the output deleted": shutil.rmtree,
    "the output a link to the same files": link_folder,
    "the output a file": lambda path: (shutil.rmtree(path), path.write_bytes(b"")),
    "the output emptied": lambda path: (shutil.rmtree(path), path.mkdir()),
}


def writable(tree: Path) -> None:
    for path in (tree, *tree.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def check_replaced(make: Make, fault: Fault | None = None, step: Step = STEP) -> None:
    """A file of the output, or all of it, is gone or another thing: a miss, no hanging, and computed again."""

    def trial(point: tuple[str, str]) -> None:
        what, name = point
        with folder() as place:
            stored = compute(make(place), step)
            writable(stored.path)
            if name:
                DAMAGES[what](stored.path / name)
            else:
                TREE_DAMAGES[what](stored.path)
            store = make(place)
            assert store.lookup(step.stage, step.key) is None, "a damaged tree was served"
            assert len(store.notes) == 1
            battery.assert_recovers(make, place, step)

    points = [(what, name) for what in DAMAGES for name in step.files]
    each(fault, points + [(what, "") for what in TREE_DAMAGES], trial)


def check_in_the_way(make: Make, fault: Fault | None = None, step: Step = STEP) -> None:
    """A damaged output under its name without a record: publishing replaces it, and does not take it for its own."""

    def trial(name: str) -> None:
        with folder() as place:
            stored = compute(make(place), step)
            record_file(place, step).unlink()
            flip(stored.path / name, 0)
            assert_right(compute(make(place), step), step.files)
            battery.assert_recovers(make, place, step)

    each(fault, step.files, trial)


def check_flip_after_lookup(make: Make, fault: Fault | None = None, count: int = 5) -> None:
    """A bit flips after an output was verified: the next look-up of the same store sees it."""

    def trial(number: int) -> None:
        rng = random.Random(number)
        with folder() as place:
            store = make(place)
            stored = compute(store)
            assert_right(store.lookup(STEP.stage, STEP.key))
            flip(stored.path / rng.choice(sorted(STEP.files)), rng.randrange(8 * 12))
            assert store.lookup(STEP.stage, STEP.key) is None, "damaged after the first look-up, and served"
            battery.assert_recovers(make, place)

    each(fault, range(fault.count if fault else count), trial)


@contextmanager
def bad_once(name: str, bit: int) -> Iterator[list[Path]]:
    """The first time a file of this name is opened to be read, one bit of what is read is another one."""
    real, done = digest.open_regular, []

    def opened(path: Path) -> int:
        fd = real(path)
        if done or path.name != name:
            return fd
        done.append(path)
        data = bytearray(os.pread(fd, os.fstat(fd).st_size, 0) or b"\0")
        os.close(fd)
        data[bit // 8 % len(data)] ^= 1 << bit % 8
        copy = os.memfd_create("bad")
        os.write(copy, data)
        os.lseek(copy, 0, os.SEEK_SET)
        return copy

    digest.open_regular = record.open_regular = opened
    try:
        yield done
    finally:
        digest.open_regular = record.open_regular = real


def check_read_failure_is_reported(make: Make, fault: Fault | None = None) -> None:
    """A disk that cannot read is a failure, not a miss: recomputing for hours would hide it."""

    def trial(point: tuple[str, int]) -> None:
        with folder() as place:
            compute(make(place))
            with failing(*point, place):
                try:
                    make(place).lookup(STEP.stage, STEP.key)
                except StoreError as error:
                    assert str(place) in str(error)
                else:
                    raise AssertionError("a read error was taken for a miss")
            assert_right(make(place).lookup(STEP.stage, STEP.key))

    numbers = (errno.EIO, errno.EACCES, errno.EMFILE)
    each(fault, [(call, number) for call in ("open", "readv", "scandir") for number in numbers], trial)


@contextmanager
def failing(call: str, number: int, place: Path) -> Iterator[None]:
    """Lets one function of `os` fail on what is read from the trees."""
    real = getattr(os, call)

    def broken(target: Any, *rest: Any) -> Any:
        where = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        if where.startswith(f"{place}/spinloop-store-v1/trees/"):
            raise OSError(number, os.strerror(number))
        return real(target, *rest)

    setattr(os, call, broken)
    try:
        yield
    finally:
        setattr(os, call, real)
