"""Clearing what nobody needs, while nobody is inside `using`; or, of a store that is never idle, in two steps: what
nobody needs is condemned, and a later gc removes it (condemned.py)."""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from spin_core.errors import StoreError
from spin_core.store import deltas, fs, locks, roots, runs
from spin_core.store.digest import Damaged, children
from spin_core.store.keep import PINNED
from spin_core.store.record import Record, read
from spin_core.store.store import FOLDERS, Store
from spin_core.store.verify import is_free, stray

ATTEMPTS, PAUSE = 5, 0.5  # seconds, between two looks over a store in use
Report = Callable[[str, int], None]
"""Is called, for each thing that goes, with what it is (a stage, or temporary, scratch, quarantine) and the bytes that
it frees."""


@dataclass(frozen=True)
class GcResult:
    """What gc removed, or would remove: bytes of files; numbers of trees, records, leftovers and scratch folders.
    `in_use`: somebody used the store; then `waiting` trees with `waiting_bytes` of files go with a later gc."""

    bytes: int
    trees: int
    records: int
    temp: int
    scratch: int
    quarantine: int = 0
    in_use: bool = False
    waiting: int = 0
    waiting_bytes: int = 0


def gc(
    store: Store,
    keep_runs: int | None = None,
    keep: Collection[str] = (),
    quarantine: bool = False,
    dry_run: bool = False,
    report: Report = lambda what, size: None,
    forget: Collection[str] | None = None,
    while_used: bool = False,
) -> GcResult:
    """Removes leftovers of dead processes, scratch folders whose key nobody holds, and trees that no record names.

    With `keep_runs` or `keep`, also every record that neither the last so many runs nor the runs of these names nor
    pinned ones link to or were made from, and its tree; with `forget`, that no other run but these does. The best model
    of every run (its link `best`) stays, not what it was made from; to give it up, forget the run first. Links that
    then lead nowhere go too, other files of runs/ stay.
    `quarantine`: also what was damaged and set aside, which stays otherwise.
    `while_used`: where somebody is inside `using`, outputs alone, in two steps; nothing that anybody relies on goes.
    Raises BadInput for a run that is not there and a number below 0; StoreError, having done nothing, while somebody is
    inside `using` (unless `while_used`), where the file system has no locks, where a folder or record cannot be read,
    and where what is there cannot be all (`roots`).
    """

    def find() -> dict[Path, str]:
        return _find(store, keep_runs, keep, forget, quarantine)

    with fs.boundary(store.root):
        try:
            with locks.locked(store.root / "locks" / "gc", block=False) as alone:
                if not alone:
                    raise StoreError(
                        f"{store.root}: locks do not work here, so gc cannot see who uses the store; delete it by hand."
                    )
                found = [find() for _ in range(2)]
                if found[0] != found[1]:
                    raise StoreError(f"{store.root}: reads differently each time; check the disk, then run gc again.")
                result = _collect(store, found[0], dry_run, report)
                if not dry_run:
                    store.condemned.clear()
                return result
        except locks.Busy:
            if while_used:
                return _gc_in_use(store, find, dry_run, report)
            raise StoreError(f"{store.root}: a run is using the store; run gc again when it has finished.") from None


def _gc_in_use(store: Store, find: Callable[[], dict[Path, str]], dry_run: bool, report: Report) -> GcResult:
    """Removes what is condemned, still unneeded and not marked, once everybody has ended who began before it was
    condemned; then condemns what else nobody needs."""
    condemned, gone, done = store.condemned, dict[Path, str](), GcResult(0, 0, 0, 0, 0)
    try:
        with store.using(), locks.locked(store.root / "locks" / "collect", block=False):
            places, living = condemned.listed().places, condemned.others()
            if places and not living:
                with condemned.removing():
                    found = _unneeded(store, find)
                    # A record that came while the list was made stays, and so does its output, whoever else had it.
                    newer = {_digest(store, path) for path in found if _place(store, path) not in places}
                    kept = deltas.with_bases(store.root, condemned.marked() | newer)
                    gone = {
                        path: what
                        for path, what in found.items()
                        if (digest := places.get(_place(store, path))) is not None and digest not in kept
                    }
                    done = _collect(store, gone, dry_run, report, alone=False)
                    if not dry_run:
                        condemned.clear()
            going = {path: what for path, what in _unneeded(store, find).items() if path not in gone}
            if not dry_run and going and not (places and living):
                condemned.condemn({_place(store, path): _digest(store, path) for path in going})
    except locks.Busy:
        raise StoreError(f"{store.root}: another gc, or a verify, is at work; run gc again later.") from None
    trees = sum(path.parent.name == "trees" for path in going)
    return replace(done, in_use=True, waiting=trees, waiting_bytes=_freed(going, lambda what, size: None))


def _unneeded(store: Store, find: Callable[[], dict[Path, str]]) -> dict[Path, str]:
    """The outputs that two looks agree on. What others do meanwhile can make a look fail: it is tried again."""
    for attempt in range(ATTEMPTS):
        try:
            first, again = find(), find()
            return {path: what for path, what in again.items() if path in first and _is_output(path)}
        except (StoreError, FileNotFoundError):
            if attempt + 1 == ATTEMPTS:
                raise
            time.sleep(PAUSE)
    raise AssertionError


def _is_output(path: Path) -> bool:
    return path.parent.name in ("trees", deltas.FOLDER) or path.parent.parent.name == "records"


def _place(store: Store, path: Path) -> str:
    return path.relative_to(store.root).as_posix()


def _digest(store: Store, path: Path) -> str:
    """Of the output that a path of `_find` belongs to."""
    return _read(store, path).digest if path.parent.parent.name == "records" else path.name


def _find(
    store: Store, keep_runs: int | None, keep: Collection[str], forget: Collection[str] | None, quarantine: bool
) -> dict[Path, str]:
    """What is to go, with what it is. Raises as `gc`."""
    _demand_one_disk(store.root)
    folders = {name: _counted(store.root / name) for name in ("records", "trees", "runs")}
    files = [file for stage in folders["records"] if not stage.is_file() for file in _counted(stage)]
    records = [(file, _read(store, file)) for file in files]
    of_runs = [folder for folder in folders["runs"] if stat.S_ISDIR(os.stat(folder).st_mode)]
    if keep_runs is not None or keep or forget is not None:
        for folder in of_runs:
            _demand_content(folder)
    there = {folder.name: runs.pointer(folder) for folder in of_runs}
    named = [record for _, record in records]
    begun = roots.begun(_bytes(store.root / roots.LIST))
    roots.demand_all(store.root, named, there, [tree.name for tree in folders["trees"]], begun)
    pinned = [folder.name for folder in of_runs if os.path.lexists(folder / PINNED)]
    kept = deltas.with_bases(store.root, roots.needed(store.root, named, there, keep_runs, keep, forget, pinned))
    stages = {record.digest: record.stage for record in named}
    going = {file: record.stage for file, record in records if record.digest not in kept}
    going |= {tree: stages.get(tree.name, "no record") for tree in folders["trees"] if tree.name not in kept}
    going |= {path: stages.get(path.name, "no record") for path in _deltas(store) if path.name not in kept}
    meetings = children(store.root / "nodes")  # their processes are all inside `using`
    going |= {path: "temporary" for path in [*stray(store), *meetings]}
    scratch = children(store.root / "scratch")
    going |= {folder: "scratch" for folder in scratch if is_free(store.root / "locks" / folder.name)}
    return going | {path: "quarantine" for path in (children(store.root / "quarantine") if quarantine else [])}


def _deltas(store: Store) -> list[Path]:
    return children(store.root / deltas.FOLDER)


def _demand_one_disk(root: Path) -> None:
    for name in FOLDERS:
        if (root / name).exists() and os.stat(root / name).st_dev != os.stat(root).st_dev:
            why = "lies on another file system than the store, whose folder is one"
            raise StoreError(f"{root / name}: {why}; gc removes nothing before it is unmounted or moved.")


def _counted(folder: Path) -> list[Path]:
    """What lies in a folder. Raises StoreError where that is less than the folders which the file system counts in it:
    1 link where it does not count, else 2 more than there are (a Mac counts files too)."""
    listed = sorted(folder.iterdir()) if folder.is_symlink() else children(folder)
    if folder.exists() and (count := os.stat(folder).st_nlink - 2) > len(listed):
        raise StoreError(f"{folder}: {len(listed)} entries were read, and it has {count}; check the disk.")
    return listed


def _read(store: Store, file: Path) -> Record:
    try:
        return read(file, store.root / "trees")
    except Damaged as bad:
        why = f"{str(bad).rstrip('.')}, so it is not known what it needs, and gc removes nothing"
        raise StoreError(f"{why}; run its profile again, which sets it aside, or move it out of the store.") from None


def _demand_content(run: Path) -> None:
    if not children(run):
        raise StoreError(f"{run}: is empty, so it is not known what this run needs; if it is of no use, delete it.")


def _bytes(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _collect(store: Store, going: dict[Path, str], dry_run: bool, report: Report, alone: bool = True) -> GcResult:
    freed = _freed(going, report)
    begun = roots.begun(_bytes(store.root / roots.LIST))
    if not dry_run and (going or (alone and begun)):
        # What a gc that died has not finished is finished now, and is in this list too if this one dies as well.
        names = {_place(store, path) for path in going} | begun
        _note(store, roots.removal(names))
        _remove(store, going)
        _unlink(store, roots.digests(names))
        # In a store in use not all of that may go: a gc that is alone goes on with it.
        _note(store, roots.removal(names, finished=alone or not any((store.root / name).exists() for name in begun)))
    kinds = Counter(path.relative_to(store.root).parts[0] for path in going if path.suffix != ".owner")
    temp = kinds["tmp"] + kinds["nodes"]
    return GcResult(freed, kinds["trees"], kinds["records"], temp, kinds["scratch"], quarantine=kinds["quarantine"])


def _note(store: Store, content: bytes) -> None:
    runs.replace_file(store.root, store.root / roots.LIST, content)
    fs.sync(store.root)


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


def _unlink(store: Store, gone: set[str]) -> None:
    """Removes links to outputs that were removed. Others that lead nowhere stay: a run shows its outputs again."""
    for run in children(store.root / "runs"):
        for link in children(run):
            if (
                link.is_symlink()
                and (name := Path(os.readlink(link)).name) in gone
                and not (store.root / "trees" / name).exists()
            ):
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
    """All files and links below a folder; or the file itself. Raises OSError."""
    if path.is_symlink() or not path.is_dir():
        return [path]
    return [Path(base, name) for base, _, names in os.walk(path, onerror=_refuse) for name in names]


def _refuse(error: OSError) -> None:
    raise error
