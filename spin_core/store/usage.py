"""What the store takes of the disk, by stage and by run."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spin_core.store import deltas, fs
from spin_core.store.digest import children
from spin_core.store.gc import files_below
from spin_core.store.runs import pointer
from spin_core.store.store import Store
from spin_core.store.verify import readable

IN_HAND = ("scratch", "tmp", "quarantine")


@dataclass(frozen=True)
class UsageLine:
    """One line of the table. `only`: bytes that would go with it, because nothing else has them (of a run)."""

    name: str
    count: int
    bytes: int
    only: int = 0


@dataclass(frozen=True)
class Usage:
    """Outputs by stage, by run, and what is not output: unfinished work, temporary files, damaged things set aside."""

    stages: list[UsageLine]
    runs: list[UsageLine]
    other: list[UsageLine]
    total: int
    """Bytes of all files; one that several outputs share counts once, with the first of them."""
    profiles: list[UsageLine] = field(default_factory=list)
    """By the profile whose name runs have before the digest of their settings; `only`: that no other profile has."""


def usage(store: Store, run: str | None = None) -> Usage:
    """What the files below the store's folder take; `run`: of one run's outputs alone. Nothing is hashed.

    Raises StoreError where the disk fails.
    """
    with fs.boundary(store.root), store.using():
        seen: set[Hashable] = set()
        stages = {record.digest: record.stage for _, record in readable(store)}
        trees = {digest: _new(files, seen) for digest, files in outputs(store).items()}
        linked = {
            folder.name: set(pointer(folder)[0].values()) & trees.keys()
            for folder in children(store.root / "runs")
            if folder.is_dir()  # pages of sweeps, evaluations and costs lie beside the runs
        }
        other = [
            UsageLine(name, len(paths), sum(_size(path, seen) for path in paths))
            for name in IN_HAND
            if (paths := children(store.root / name))
        ]
        return table(trees, stages, linked, other, run)


def outputs(store: Store) -> dict[str, dict[Hashable, int]]:
    """Digest → the files of an output and their bytes, weights as deltas too; a file that several outputs share (one
    inode) is the same in each. Raises OSError."""
    made: dict[str, dict[Hashable, int]] = {}
    for tree in children(store.root / "trees"):
        paths = [tree, *children(store.root / deltas.FOLDER / tree.name)]
        stats = [file.lstat() for path in paths for file in files_below(path)]
        made[tree.name] = {(status.st_dev, status.st_ino): status.st_size for status in stats}
    return made


def _new(files: dict[Hashable, int], seen: set[Hashable]) -> int:
    """Bytes of the files that are not among `seen`, and now are."""
    fresh = files.keys() - seen
    seen |= fresh
    return sum(files[file] for file in fresh)


def table(
    trees: dict[str, int], stages: dict[str, str], linked: dict[str, set[str]], other: list[UsageLine], run: str | None
) -> Usage:
    """`trees`: bytes by digest; `stages`: which stage made it, where a record says so; `linked`: what runs lead to."""
    shown = linked.get(run, set()) if run else trees.keys()
    by_stage: dict[str, list[int]] = {}
    for digest in sorted(shown):
        by_stage.setdefault(stages.get(digest, "(no record)"), []).append(trees[digest])
    profiles: dict[str, set[str]] = {}
    for name, own in linked.items():
        profiles.setdefault(profile_of(name), set()).update(own)
    runs = [line for line in _lines(linked, trees) if run in (None, line.name)]
    other = [] if run else other
    total = sum(trees[digest] for digest in shown) + sum(line.bytes for line in other)
    made = [UsageLine(name, len(own), sum(own)) for name, own in sorted(by_stage.items())]
    return Usage(made, runs, other, total, [] if run else _lines(profiles, trees))


def profile_of(run: str) -> str:
    """`demo` of `demo-3fa9c1`."""
    return run.rpartition("-")[0] or run


def _lines(linked: Mapping[str, set[str]], trees: Mapping[str, int]) -> list[UsageLine]:
    """Of each name the outputs that it leads to, and what nothing else leads to."""
    lines = []
    for name, own in sorted(linked.items()):
        others = set().union(*(there for one, there in linked.items() if one != name))
        lines.append(UsageLine(name, len(own), sum(trees[d] for d in own), sum(trees[d] for d in own - others)))
    return lines


def _size(path: Path, seen: set[Hashable]) -> int:
    stats = [file.lstat() for file in files_below(path)]
    return _new({(status.st_dev, status.st_ino): status.st_size for status in stats}, seen)
