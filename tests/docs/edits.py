"""Puts the blocks of a page that have a file for their title into a copy of this repository."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.architecture.scan import ROOT, tracked
from tests.docs.blocks import Block


def copy_of_the_tree(to: Path) -> Path:
    """What git tracks of this repository, as it is now, in the folder `to`; links stay links."""
    for file in tracked():
        place = to / file.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place, follow_symlinks=False)
    return to


def put(block: Block, root: Path) -> None:
    """A new file as it stands; a diff where its lines are. Raises ValueError, with the block's place, for a file that
    is there already, and for a place that is not there or there twice."""
    file = root / block.title
    if block.language != "diff":
        if file.exists():
            raise ValueError(f"{block.place}: {block.title} is there already")
        file.write_text(block.text + "\n", encoding="utf-8")
        return
    lines = block.text.split("\n")
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    text = file.read_text(encoding="utf-8")
    if text.count(before) != 1:
        raise ValueError(
            f"{block.place}: {block.title} has these lines {text.count(before)} times, not once:\n{before}"
        )
    file.write_text(text.replace(before, after), encoding="utf-8")
