"""`spinloop store pack`: the weights of models in the middle of a run as differences to those they were trained from.

What a run ended with and its best model are never packed: people read these by their links.
Not here: where deltas lie and how they are read (deltas.py), their format (delta.py), and object storage, where weights
are sent so in the first place (s3/deltas.py).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spin_core.errors import StoreError
from spin_core.store import delta, deltas, fs, locks, roots, runs
from spin_core.store.digest import children, file_digest
from spin_core.store.keys import input_digests
from spin_core.store.progress import bar
from spin_core.store.record import Record
from spin_core.store.store import Store


@dataclass(frozen=True)
class PackResult:
    """What `pack` did: models, and the bytes that their weights took and take now."""

    models: int
    before: int
    after: int


def pack(store: Store, dry_run: bool = False) -> PackResult:
    """Packs every model that some run made on the way and no run ended with. What would not be half as large stays.

    Raises StoreError, having done nothing, while somebody uses the store, and where a record cannot be read.
    """
    with fs.boundary(store.root):
        try:
            with locks.locked(store.root / "locks" / "gc", block=False) as alone:
                if not alone:
                    why = "locks do not work here, so it is not known who uses the store"
                    raise StoreError(f"{store.root}: {why}; nothing is packed.")
                return _pack(store, dry_run)
        except locks.Busy:
            raise StoreError(f"{store.root}: a run is using the store; pack it when it has finished.") from None


def _pack(store: Store, dry_run: bool) -> PackResult:
    """First every delta, then the files go: a base is whole while something is compared with it."""
    chosen = list(_candidates(store))
    depths: dict[str, int] = {}
    made: list[tuple[str, str, Path]] = []
    for record, name, base in chosen:
        depth = depths.get(base, _depth(store.root, base, name)) + 1
        if depth > delta.DEEPEST:
            continue
        if dry_run:
            made.append((record.digest, name, Path()))
        elif path := deltas.packed(store.root, record.digest).get(name) or _write(store, record, name, base):
            made.append((record.digest, name, path))
        else:
            continue
        depths[record.digest] = depth
    before = after = 0
    for digest, name, path in reversed(made):
        file = store.root / "trees" / digest / name
        before += file.lstat().st_size
        if not dry_run:
            after += path.lstat().st_size
            _drop(store, digest, name, path)
    return PackResult(len({digest for digest, _, _ in made}), before, after)


def _candidates(store: Store) -> Iterator[tuple[Record, str, str]]:
    """(record, file, digest of the tree with its base), a base before what hangs on it."""
    records = {record.digest: record for record in store.records()}
    if notes := [note for note in store.notes if "/records/" in note]:
        raise StoreError(f"{notes[0].rstrip('.')}; nothing is packed before its profile is run again.")
    ends = {
        digest
        for folder in children(store.root / "runs")
        if stat.S_ISDIR(folder.stat().st_mode)
        for digest in roots.ends(runs.pointer(folder)[0])
    }
    done: set[str] = set()

    def visit(digest: str) -> Iterator[tuple[Record, str, str]]:
        record = records.get(digest)
        if record is None or digest in done:
            return
        done.add(digest)
        inputs = [one for one in input_digests(record.payload) if one in records]
        for one in inputs:
            yield from visit(one)
        for entry in record.files if digest not in ends else []:
            if entry["path"].endswith(delta.SUFFIX) and (record.path / entry["path"]).is_file():
                twins = (one for one in inputs if _size(records[one], entry["path"]) == entry["size"])
                if entry["size"] >= delta.SMALLEST and (base := next(twins, None)):
                    yield record, entry["path"], base

    for digest in records:
        yield from visit(digest)


def _size(record: Record, name: str) -> int | None:
    return next((entry["size"] for entry in record.files if entry["path"] == name), None)


def _depth(root: Path, digest: str, name: str) -> int:
    """How many deltas this file of a tree is away from a whole one."""
    path = deltas.left_out(root, digest).get(name)
    return len(deltas.way(root, name, path)[1]) if path else 0


def _write(store: Store, record: Record, name: str, base: str) -> Path | None:
    """The delta of one file, in its place; None where it would be too large, or one of the two is damaged."""
    sums = {one["path"]: one["sha256"] for one in record.files}
    temp, file = store.root / "tmp" / f"{fs.unique()}.delta", record.path / name
    watched = bar(store.report, f"store {record.digest[:12]}", "pack", file.lstat().st_size)
    with _base_file(store, base, name) as source, watched as advance:
        head = delta.write(source, file, base, temp, advance)
    if head is None:
        return None
    if head.new != sums[name]:
        fs.unlink(temp)
        store.note_once(f"{file}: its content is not what was published; its next look-up sets it aside.")
        return None
    target = store.root / deltas.FOLDER / record.digest / f"{name}.{file_digest(temp)[1]}"
    for parent in reversed([one for one in target.parents if one.is_relative_to(store.root / deltas.FOLDER)]):
        fs.make_dir(parent, 0o755)
        fs.sync(parent.parent)
    fs.chmod(temp, 0o444)
    fs.replace(temp, target)
    fs.sync(target.parent)
    return target


@contextmanager
def _base_file(store: Store, digest: str, name: str) -> Iterator[Path]:
    """A whole file of a tree: where it lies, or restored for the moment."""
    path = deltas.left_out(store.root, digest).get(name)
    if path is None:
        yield store.root / "trees" / digest / name
        return
    temp = store.root / "tmp" / f"{fs.unique()}.base"
    try:
        delta.restore(*deltas.way(store.root, name, path), temp)
        yield temp
    finally:
        fs.unlink(temp)


def _drop(store: Store, digest: str, name: str, path: Path) -> None:
    """Removes a file whose delta gives it back, bit for bit, now."""
    file = store.root / "trees" / digest / name
    if delta.restore(*deltas.way(store.root, name, path), None) != file_digest(file)[1]:
        raise StoreError(f"{path}: does not give {file} back, which stays; check the disk.")
    with deltas.writable(file.parent):
        fs.unlink(file)
    fs.sync(file.parent)
