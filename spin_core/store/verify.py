"""Checking the whole store; what to do about leftovers is in gc.py."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from spin_core.store import deltas, fs, locks
from spin_core.store.digest import Damaged, children, files_in, manifest, tree_digest
from spin_core.store.keys import DIGEST, STAGE
from spin_core.store.make_immutable import check_tree
from spin_core.store.record import Record, read
from spin_core.store.store import Store

Track = Callable[[list[Path]], Iterable[Path]]


def verify(store: Store, deep: bool = True, track: Track = lambda trees: trees) -> list[str]:
    """What is wrong with the store, a line each, "<place in the store>: <what>"; changes nothing.

    Torn trees, records without their tree, wrong names, and leftovers in tmp/ that nobody holds. `deep` hashes all
    files, else only their sizes are compared. Trees that no record names are not wrong: `gc` takes them.
    `track` is given the trees and gives them back one by one, for who shows progress.
    Raises StoreError if the disk fails.
    """
    collect = locks.locked(store.root / "locks" / "collect", shared=True)  # else what a gc removes now seems torn
    with fs.boundary(store.root), store.using(), collect:
        problems = list(_tree_problems(store, deep, track)) + list(_record_problems(store)) + store.takes.problems()
        problems += [
            f"tmp/{path.name}: left by a process that is gone; `spinloop store gc` takes it." for path in stray(store)
        ]
    return [line.replace(f"{store.root}/", "") for line in problems]


def _tree_problems(store: Store, deep: bool, track: Track) -> Iterator[str]:
    named = {record.digest: record for _, record in readable(store)}
    for tree in track(children(store.root / "trees")):
        try:
            if not DIGEST.fullmatch(tree.name):
                yield f"{tree}: not the name of a tree."
            elif tree.name in named and deltas.left_out(store.root, tree.name):
                yield from _packed_problems(store, named[tree.name], deep)
            elif deep and tree_digest(manifest(tree)) != tree.name:
                yield f"{tree}: its content is not what its name says."
            elif not deep and tree.name in named:
                sizes = {name: path.lstat().st_size for name, path in files_in(tree)}
                if sizes != {entry["path"]: entry["size"] for entry in named[tree.name].files}:
                    yield f"{tree}: its files have other names or sizes than were published."
        except Damaged as bad:
            yield str(bad)


def _packed_problems(store: Store, record: Record, deep: bool) -> Iterator[str]:
    """Of a tree whose weights are deltas; raises Damaged for the first."""
    if deep:
        check_tree(record.path, record.files, deltas.sound(store.root, record.digest, record.files))
        return
    sizes = {name: path.lstat().st_size for name, path in files_in(record.path)}
    gone = deltas.left_out(store.root, record.digest)
    if sizes != {entry["path"]: entry["size"] for entry in record.files if entry["path"] not in gone}:
        yield f"{record.path}: its files have other names or sizes than were published."


def _record_problems(store: Store) -> Iterator[str]:
    for file in record_files(store):
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


def record_files(store: Store) -> list[Path]:
    """Everything that lies where records do. Raises OSError."""
    return [file for stage in children(store.root / "records") for file in children(stage)]


def readable(store: Store) -> list[tuple[Path, Record]]:
    """Every whole record, evidence too, with its file. Damaged ones name nothing."""
    records = []
    for file in record_files(store):
        try:
            records.append((file, read(file, store.root / "trees")))
        except Damaged:
            continue
    return records


def stray(store: Store) -> list[Path]:
    """What lies in tmp/ without a living owner. An owner holds the lock on `<name>.owner` until it dies."""
    return [
        path
        for path in children(store.root / "tmp")
        if is_free(path.with_name(f"{path.name.removesuffix('.owner')}.owner"))
    ]


def is_free(lock: Path) -> bool:
    """Whether nobody holds a lock. Where locks do not work it is not known: False. Raises OSError where the folder of
    locks cannot be read."""
    try:
        os.lstat(lock)
    except FileNotFoundError:
        return True
    try:
        with locks.locked(lock, block=False) as working:
            return working
    except locks.Busy:
        return False
