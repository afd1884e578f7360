"""Clearing what nobody needs. Not in use by a living process: gc does nothing while somebody is inside `using`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from spin_core.errors import BadInput, StoreError
from spin_core.store import fs, locks, runs
from spin_core.store.keys import input_digests
from spin_core.store.record import Record
from spin_core.store.store import Store
from spin_core.store.verify import children, is_free, readable, stray

Report = Callable[[str, int], None]
"""Is called, for each thing that goes, with what it is (a stage, or temporary, scratch, quarantine) and the bytes that
it frees."""


@dataclass(frozen=True)
class GcResult:
    """What gc removed, or would remove: bytes of files; numbers of trees, records, leftovers and scratch folders."""

    bytes: int
    trees: int
    records: int
    temp: int
    scratch: int
    quarantine: int = 0


def gc(
    store: Store,
    keep_runs: int | None = None,
    keep: Collection[str] = (),
    quarantine: bool = False,
    dry_run: bool = False,
    report: Report = lambda what, size: None,
) -> GcResult:
    """Removes leftovers of dead processes, scratch folders whose key nobody holds, and trees that no record names.

    With `keep_runs` or `keep`, also every record that neither the last so many runs nor the runs of these names link
    to or were made from, and its tree. The best model of every run (its link `best`) stays, not what it was made from;
    to give it up, delete the run's folder first. Links that then lead nowhere go too, other files of runs/ stay.
    `quarantine`: also what was damaged and set aside, which stays otherwise.
    Raises BadInput for a run that is not there and a number below 0; StoreError, having done nothing, while somebody is
    inside `using` or where the file system has no locks.
    """
    with fs.boundary(store.root):
        try:
            with locks.locked(store.root / "locks" / "gc", block=False) as alone:
                if not alone:
                    raise StoreError(
                        f"{store.root}: locks do not work here, so gc cannot see who uses the store; delete it by hand."
                    )
                records = readable(store)
                there = {folder.name: runs.pointer(folder) for folder in children(store.root / "runs")}
                kept = needed([record for _, record in records], there, keep_runs, keep)
                return _collect(store, records, kept, quarantine, dry_run, report)
        except locks.Busy:
            raise StoreError(f"{store.root}: a run is using the store; run gc again when it has finished.") from None


def needed(
    records: list[Record], there: Mapping[str, runs.Pointer], keep_runs: int | None, keep: Collection[str]
) -> set[str]:
    """Digests that stay of those that `records` name: all; with `keep_runs` or `keep`, those that the runs to be kept
    of `there` lead to, what these were made from, and the best model of every run.

    Raises BadInput for a number of runs below 0, and for one to be kept that is none of `there`.
    """
    if keep_runs is None and not keep:
        return {record.digest for record in records}
    if keep_runs is not None and keep_runs < 0:
        raise BadInput(f"{keep_runs} runs cannot be kept; give the number of runs, from 0.")
    for name in keep:
        if name not in there:
            raise BadInput(f"{name}: there is no such run to keep; runs are {', '.join(sorted(there)) or 'none'}.")
    last = sorted(there, key=lambda name: (there[name][1], name), reverse=True)[: keep_runs or 0]
    in_full = {digest for name in {*last, *keep} for digest in there[name][0].values()}
    return _made_from(in_full, records) | {digest for links, _ in there.values() for digest in _best(links)}


def _best(links: dict[str, str]) -> list[str]:
    """The run's best model; of a run that has none (yet), the last that it trained."""
    trained = sorted(label for label in links if "-finetune-iter-" in label)
    return [links[label] for label in ([runs.BEST] if runs.BEST in links else trained[-1:])]


def _collect(
    store: Store, records: list[tuple[Path, Record]], kept: set[str], quarantine: bool, dry_run: bool, report: Report
) -> GcResult:
    stages = {record.digest: record.stage for _, record in records}
    going = {file: record.stage for file, record in records if record.digest not in kept}
    going |= {t: stages.get(t.name, "no record") for t in children(store.root / "trees") if t.name not in kept}
    left = [*stray(store), *children(store.root / "nodes")]  # a meeting's processes are all inside `using`
    going |= {path: "temporary" for path in left}
    scratch = [folder for folder in children(store.root / "scratch") if is_free(store.root / "locks" / folder.name)]
    going |= {path: "scratch" for path in scratch}
    aside = children(store.root / "quarantine") if quarantine else []
    going |= {path: "quarantine" for path in aside}
    freed = _freed(going, report)
    if not dry_run:
        _remove(store, going)
    return GcResult(
        bytes=freed,
        trees=sum(path.parent.name == "trees" for path in going),
        records=sum(path.parent.parent.name == "records" for path in going),
        temp=sum(path.suffix != ".owner" for path in left),
        scratch=len(scratch),
        quarantine=len(aside),
    )


def _made_from(digests: set[str], records: list[Record]) -> set[str]:
    """These and what they were made from, all the way up."""
    inputs: dict[str, list[str]] = {}
    for record in records:
        inputs.setdefault(record.digest, []).extend(input_digests(record.payload))
    reached: set[str] = set()
    waiting = list(digests)
    while waiting:
        digest = waiting.pop()
        if digest not in reached:
            reached.add(digest)
            waiting += inputs.get(digest, [])
    return reached


def _remove(store: Store, going: Iterable[Path]) -> None:
    """Records before trees, trees out of sight before their files, each durably before the next: neither a kill nor a
    power loss leaves a record without its tree or half a tree under its name."""
    records = [path for path in going if path.parent.parent.name == "records"]
    for file in records:
        fs.remove(file)
    for folder in {file.parent for file in records}:
        fs.sync(folder)
    trees = {path: store.root / "tmp" / fs.unique() for path in going if path.parent.name == "trees"}
    for tree, gone in trees.items():
        fs.move_away(tree, gone)
    if trees:
        fs.sync(store.root / "trees")
        fs.sync(store.root / "tmp")
    for path in going:
        fs.remove(trees.get(path, path))
    for link in store.root.glob("runs/*/*"):
        if link.is_symlink() and not link.exists():
            fs.unlink(link)


def _freed(going: dict[Path, str], report: Report) -> int:
    """Bytes that removing these paths gives back: a file that outputs share goes with the last link to it. Where they
    share blocks (copies on write) it is less."""
    total, links = 0, Counter[tuple[int, int]]()
    for path, what in going.items():
        size = 0
        for file in files_below(path):
            status = file.lstat()
            links[status.st_dev, status.st_ino] += 1
            if links[status.st_dev, status.st_ino] == status.st_nlink:
                size += status.st_size
        report(what, size)
        total += size
    return total


def files_below(path: Path) -> list[Path]:
    """All files and links below a folder; or the file itself."""
    if path.is_symlink() or not path.is_dir():
        return [path]
    return [Path(base, name) for base, _, names in os.walk(path) for name in names]
