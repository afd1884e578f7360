"""How often a step was replaced on purpose (`spinloop run --redo … --replace`); the number is part of its key.

    takes/<key>.<n>.json     the step whose first output has this key was replaced for the n-th time

The largest n counts. A name says all that is read, and a file is created once and never changed: nothing is read,
changed and written back. So two processes that replace a step at once need no lock, a kill leaves the file or none,
and what is in it is for people alone. The output of the n-th time has its record before there is the file; where gc has
removed that record since, the step is computed again under its n. gc removes no file here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from spin_core.store import fs, locks
from spin_core.store.digest import children

FOLDER = "takes"
NAME = re.compile(r"([0-9a-f]{64})\.([1-9][0-9]{0,5})\.json")


def newest(names: Iterable[str]) -> dict[str, int]:
    """Key of a step's first output → how often it was replaced, of the files' names."""
    counts: dict[str, int] = {}
    for match in filter(None, map(NAME.fullmatch, names)):
        counts[match[1]] = max(counts.get(match[1], 0), int(match[2]))
    return counts


def in_words(take: int) -> str:
    """`replaced once`, `replaced 3 times`; nothing of a first output."""
    return "" if not take else "replaced once" if take == 1 else f"replaced {take:,} times"


class Takes:
    """The files of a store in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self) -> dict[str, int]:
        """Key of a step's first output → how often it was replaced; steps that never were are not in it. Raises
        StoreError."""
        return newest(self.names())

    def write(self, stage: str, key: str, take: int, by: str) -> None:
        """Note, durably, that the step whose first output has `key` was replaced for the `take`-th time; the key of
        that output, which is published, is `by`. Where it is noted already nothing changes. Raises StoreError."""
        about = {"stage": stage, "key": key, "replaced": take, "by": by}
        self._create(f"{key}.{take}.json", (json.dumps(about, indent=1) + "\n").encode())

    def problems(self) -> list[str]:
        """What lies there and is no such file, a line each as `verify` has them. Raises StoreError."""
        return [f"{FOLDER}/{name}: not the name of a replacement." for name in self.names() if not NAME.fullmatch(name)]

    def names(self) -> list[str]:
        """The files that are there, whatever they are called. Raises StoreError."""
        folder = self._root / FOLDER
        with fs.boundary(folder):
            return [path.name for path in children(folder)]

    def _create(self, name: str, data: bytes) -> None:
        folder = self._root / FOLDER
        with fs.boundary(folder), locks.locked(self._root / "locks" / "gc", shared=True):
            if fs.make_dir(folder):
                fs.sync(self._root)
            with fs.temporary(self._root / "tmp" / f"{fs.unique()}.take") as temp:
                fs.write_file(temp, data)
                fs.put_once(temp, folder / name)
            fs.sync(folder)
