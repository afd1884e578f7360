"""Disk space: a file of a new output that an input of it has already takes its space only once.

A model's tokenizer goes from iteration to iteration unchanged, and so do settings. Only inputs are looked at, under
the same name: an index of every file in the store would cost each publication more than it saves.
Not a risk: files of the store are never written again (0444), what is shared was compared byte by byte, and it is
hashed at every look-up as before: damage to a shared block is seen in each output that has it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from spin_core.store import fs
from spin_core.store.digest import Damaged, files_in, open_regular

SMALLEST = 4096  # bytes: below a block there is nothing to save
PIECE = 1 << 20


def share(tree: Path, inputs: Iterable[Path]) -> int:
    """Makes files of the finished, not yet sealed folder `tree` one with those of the trees `inputs` that are the same.

    Returns the bytes that it saved. What cannot be shared stays as it is. Raises Damaged as `files_in`, OSError where
    the disk fails.
    """
    places = [place for place in inputs if place.is_dir()]
    saved = 0
    for name, path in sorted(files_in(tree)) if places else ():
        size = path.lstat().st_size
        if size >= SMALLEST:
            twin = next((place / name for place in places if _same(place / name, path, size)), None)
            saved += size if twin and fs.duplicate(twin, path) else 0
    return saved


def _same(source: Path, path: Path, size: int) -> bool:
    """Whether both are regular files of the same bytes. Weights that were trained differ in the first piece."""
    try:
        with open(open_regular(source), "rb") as one, open(open_regular(path), "rb") as other:
            status = os.fstat(one.fileno())
            # One that somebody made writable may be about to change; one of another user could not be sealed again.
            if status.st_size != size or stat.S_IMODE(status.st_mode) & 0o222 or status.st_uid != os.geteuid():
                return False
            while piece := one.read(PIECE):
                if piece != other.read(PIECE):
                    return False
            return True
    except (Damaged, OSError):  # an input that cannot be read is reported where it is used
        return False
