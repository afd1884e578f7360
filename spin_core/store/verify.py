"""Checking the whole store (`verify`) and clearing what nobody needs (`gc`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spin_core.errors import StoreError
from spin_core.store import fs, locks, runs
from spin_core.store.digest import Damaged, files_in, manifest, tree_digest
from spin_core.store.keys import DIGEST, STAGE
from spin_core.store.record import Record, read
from spin_core.store.store import Store


def verify(store: Store, deep: bool = True) -> list[str]:
    """What is wrong with the store, a line each, "<place in the store>: <what>"; changes nothing.

    Torn trees, records without their tree, wrong names, and leftovers in tmp/ that nobody holds. `deep` hashes all
    files, else only their sizes are compared. Trees that no record names are not wrong: `gc` takes them.
    Raises StoreError if the disk fails.
    """
    with fs.boundary(store.root), store.using():
        problems = list(_tree_problems(store, deep)) + list(_record_problems(store))
        problems += [
            f"tmp/{path.name}: left by a process that is gone; `spinloop store gc` takes it." for path in _stray(store)
        ]
    return [line.replace(f"{store.root}/", "") for line in problems]


def _tree_problems(store: Store, deep: bool) -> Iterator[str]:
    named = {record.digest: record for _, record in _readable(store)}
    for tree in _children(store.root / "trees"):
        try:
            if not DIGEST.fullmatch(tree.name):
                yield f"{tree}: not the name of a tree."
            elif deep and tree_digest(manifest(tree)) != tree.name:
                yield f"{tree}: its content is not what its name says."
            elif not deep and tree.name in named:
                sizes = {name: path.lstat().st_size for name, path in files_in(tree)}
                if sizes != {entry["path"]: entry["size"] for entry in named[tree.name].files}:
                    yield f"{tree}: its files have other names or sizes than were published."
        except Damaged as bad:
            yield str(bad)


def _record_problems(store: Store) -> Iterator[str]:
    for file in _record_files(store):
        digest = file.stem.partition(".nondeterministic-")
        if not STAGE.fullmatch(file.parent.name) or not DIGEST.fullmatch(digest[0]) or file.suffix != ".json":
            yield f"{file}: not the name of a record."
            continue
        try:
            record = read(file, store.root / "trees")
        except Damaged as bad:
            yield str(bad)
            continue
        if not record.path.is_dir():
            yield f"{file}: its tree {record.digest} is missing."


def _record_files(store: Store) -> list[Path]:
    return [file for stage in _children(store.root / "records") for file in _children(stage)]


def _readable(store: Store) -> list[tuple[Path, Record]]:
    """Every whole record, evidence too, with its file. Damaged ones name nothing."""
    found = []
    for file in _record_files(store):
        try:
            found.append((file, read(file, store.root / "trees")))
        except Damaged:
            continue
    return found


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _stray(store: Store) -> list[Path]:
    """What lies in tmp/ without a living owner. An owner holds the lock on `<name>.owner` until it dies."""
    return [
        path
        for path in _children(store.root / "tmp")
        if _free(path.with_name(f"{path.name.removesuffix('.owner')}.owner"))
    ]


def _free(lock: Path) -> bool:
    if not lock.exists():
        return True
    try:
        with locks.locked(lock, block=False) as working:
            return working
    except locks.Busy:
        return False


@dataclass(frozen=True)
class GcResult:
    """What gc removed, or would remove: bytes of files; numbers of trees, records, leftovers and scratch folders."""

    bytes: int
    trees: int
    records: int
    temp: int
    scratch: int


def gc(store: Store, keep_runs: int | None = None, dry_run: bool = False) -> GcResult:
    """Removes leftovers of dead processes, scratch folders whose key nobody holds, and trees that no record names.

    With `keep_runs`, also every record that the last so many runs neither link to nor were made from, and its tree;
    links that then lead nowhere go too, other files of runs/ stay. Not in any case: quarantine/.
    Raises StoreError, having done nothing, while somebody is inside `using` or where the file system has no locks.
    """
    with fs.boundary(store.root):
        try:
            with locks.locked(store.root / "locks" / "gc", block=False) as alone:
                if not alone:
                    raise StoreError(
                        f"{store.root}: locks do not work here, so gc cannot see who uses the store; delete it by hand."
                    )
                return _collect(store, keep_runs, dry_run)
        except locks.Busy:
            raise StoreError(f"{store.root}: a run is using the store; run gc again when it has finished.") from None


def _collect(store: Store, keep_runs: int | None, dry_run: bool) -> GcResult:
    records = _readable(store)
    kept = {record.digest for _, record in records}
    if keep_runs is not None:
        kept = _reachable(store, [record for _, record in records], keep_runs)
    old_records = [file for file, record in records if record.digest not in kept]
    old_trees = [tree for tree in _children(store.root / "trees") if tree.name not in kept]
    temp = _stray(store)
    scratch = [folder for folder in _children(store.root / "scratch") if _free(store.root / "locks" / folder.name)]
    everything = [*old_records, *old_trees, *temp, *scratch]
    freed = sum(_size(path) for path in everything)
    if not dry_run:
        # Records before trees: at no moment does a record stand without its tree.
        for path in everything:
            _remove(store, path)
        for link in store.root.glob("runs/*/*"):
            if link.is_symlink() and not link.exists():
                fs.unlink(link)
    leftovers = sum(path.suffix != ".owner" for path in temp)
    return GcResult(freed, len(old_trees), len(old_records), leftovers, len(scratch))


def _reachable(store: Store, records: list[Record], keep_runs: int) -> set[str]:
    """Digests that the last `keep_runs` runs link to, and what those were made from, all the way up."""
    last = sorted(_children(store.root / "runs"), key=lambda folder: (runs.order(folder), folder.name), reverse=True)
    links = [link for folder in last[: max(keep_runs, 0)] for link in _children(folder) if link.is_symlink()]
    kept: set[str] = set()
    waiting = [Path(os.readlink(link)).name for link in links]
    while waiting:
        digest = waiting.pop()
        if digest not in kept:
            kept.add(digest)
            for record in records:
                if record.digest == digest:
                    waiting += input_digests(record.payload)
    return kept


def input_digests(payload: dict) -> list[str]:
    """All content digests that a key's payload names as inputs."""
    return [
        digest for value in payload["inputs"].values() for digest in (value if isinstance(value, list) else [value])
    ]


def _remove(store: Store, path: Path) -> None:
    if path.parent.name == "trees":
        # Out of sight first: a kill in the middle must not leave half a tree under its name.
        gone = store.root / "tmp" / fs.unique()
        fs.move(path, gone)
        path = gone
    fs.remove(path)


def _size(path: Path) -> int:
    files = (Path(base, name) for base, _, names in os.walk(path) for name in names) if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files)
