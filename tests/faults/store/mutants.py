"""Stores that are broken on purpose, each in one way that real ones have been. test_mutants.py: the battery sees it."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spin_core.errors import StoreError
from spin_core.store import fs, locks
from spin_core.store.digest import Damaged, files_in
from spin_core.store.gc import gc
from spin_core.store.record import Record, read
from spin_core.store.store import Store
from tests.faults.store import battery


class WritesInPlace(Store):
    """Copies into the final folder instead of renaming into it."""

    def _place(self, tree: Path, target: Path, files: list[dict]) -> None:
        fs.make_dir(target)
        for name, path in files_in(tree):
            (target / name).parent.mkdir(exist_ok=True)
            with suppress(FileExistsError):
                fs.write_file(target / name, path.read_bytes())
        fs.sync(target.parent)


class RecordFirst(Store):
    """Writes the record, then the tree."""

    def _place(self, tree: Path, target: Path, files: list[dict]) -> None:
        self.late = (tree, target, files)

    def _commit(self, record: Record, file: Path) -> Record:
        standing = super()._commit(record, file)
        super()._place(*self.late)
        return standing


class SwallowsErrors(Store):
    """Goes on when the disk does not."""

    def publish(self, payload: dict, tree: Path, facts: dict) -> Record:
        try:
            return super().publish(payload, tree, facts)
        except StoreError:
            return Record("finetune", battery.KEY, payload, "", [], facts, tree)


class TrustsRecords(Store):
    """Looks only whether the folder is there."""

    def _judge(self, file: Path) -> tuple[Record | None, Damaged | None, list[Path]]:
        if not os.path.lexists(file):
            return None, None, []
        return read(file, self.root / "trees"), None, []


class HidesReadErrors(Store):
    """Takes a failing disk for a miss."""

    def lookup(self, stage: str, key: str) -> Record | None:
        try:
            return super().lookup(stage, key)
        except StoreError:
            return None


class ForgetsTheTree(Store):
    """Sets a damaged record aside but not the damaged tree, and takes a tree in the way for good."""

    def _set_aside(self, where: list[Path], bad: Damaged) -> None:
        super()._set_aside(where[:1], bad)

    def _place(self, tree: Path, target: Path, files: list[dict]) -> None:
        if not target.exists():
            super()._place(tree, target, files)


class PlaceTrustsTheTree(Store):
    """Takes whatever lies under the digest's name for the output."""

    def _place(self, tree: Path, target: Path, files: list[dict]) -> None:
        if not target.exists():
            super()._place(tree, target, files)


class SharesTempNames(Store):
    """All writers of a key use one temporary folder and start by clearing it (an old defect of the hub's cache)."""

    def new_tree(self) -> Path:
        tree = self.root / "tmp" / "the-one"
        with suppress(OSError):
            fs.remove(tree)
        with fs.boundary(tree):
            fs.make_dir(tree)
        return tree


class UnlinksLocks(Store):
    """Tidies a lock's file away when it lets go of it."""

    @contextmanager
    def lock(self, stage: str, key: str, wait: locks.Wait | None = None) -> Iterator[bool]:
        with super().lock(stage, key, wait) as held:
            yield held
            fs.unlink(self.root / "locks" / f"{stage}-{key}")


class LeavesTemp(Store):
    """Does not clear up behind a publication that failed."""

    def discard(self, tree: Path) -> None:
        if sys.exception() is None:
            super().discard(tree)
        elif (owner := self._owners.pop(tree, None)) is not None:
            os.close(owner)


class RemembersWhatWasIntact(Store):
    """Hashes an output once per process."""

    def lookup(self, stage: str, key: str) -> Record | None:
        verified = self.__dict__.setdefault("verified", {})
        if key not in verified and (record := super().lookup(stage, key)) is not None:
            verified[key] = record
        return verified.get(key)


STORES: tuple[type[Store], ...] = (
    WritesInPlace,
    RecordFirst,
    SwallowsErrors,
    TrustsRecords,
    HidesReadErrors,
    ForgetsTheTree,
    PlaceTrustsTheTree,
    SharesTempNames,
    UnlinksLocks,
    LeavesTemp,
    RemembersWhatWasIntact,
)


def checks_sizes_only(tree: Path, files: list[dict], elsewhere: Collection[str] = ()) -> None:
    """In the place of `check_tree`."""
    sizes = {name: path.lstat().st_size for name, path in files_in(tree)}
    if sizes != {entry["path"]: entry["size"] for entry in files}:
        raise Damaged(f"{tree}: other sizes.")


def follows_links(tree: Path, files: list[dict], elsewhere: Collection[str] = ()) -> None:
    """In the place of `check_tree`: hashes what lies behind links, too."""
    contents = {str(p.relative_to(tree)): p.read_bytes() for p in tree.rglob("*") if p.is_file()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
    for entry in files:
        if sums.pop(entry["path"], None) != entry["sha256"]:
            raise Damaged(f"{tree / entry['path']}: other bytes.")
    if sums:
        raise Damaged(f"{tree}: more files.")


@contextmanager
def without_sync_of(skipped: Callable[[Path], bool]) -> Iterator[None]:
    """`fs.sync` does nothing for these paths."""
    real = fs.sync

    def sync(path: Path) -> None:
        if not skipped(path):
            real(path)

    fs.sync = sync
    try:
        yield
    finally:
        fs.sync = real


def key_by_default_str(payload: dict) -> str:
    """What json cannot hold enters as its `str`."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True, default=str).encode()).hexdigest()


def key_unsorted(payload: dict) -> str:
    """As the profile happens to order its fields."""
    return hashlib.sha256(json.dumps(payload).encode()).hexdigest()


def key_without_version(payload: dict) -> str:
    """The stage's VERSION does not count."""
    return key_by_default_str({name: value for name, value in payload.items() if name != "version"})


def gc_without_roots(store: Store) -> None:
    """Nobody is running: everything goes."""
    gc(store, keep_runs=0)


def gc_without_checking_use(store: Store) -> None:
    """Clears tmp/ without looking whose it is, and while others are at work."""
    for path in (store.root / "tmp").iterdir():
        fs.remove(path)
    for path in (store.root / "trees").iterdir():
        if not any(path.name in file.read_text() for file in store.root.glob("records/*/*")):
            fs.remove(path)
