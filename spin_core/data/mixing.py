"""Which rows of one or several sets are trained on and which are held out, and which of them are drawn.

Not a reader (`spin_core/data/ingest.py`). What is held out goes by the beginning of a conversation and is the same for
all sets: held-out rows of a set's own, and of the others a part by seeded hash; whatever else begins so is not trained
on. In memory are 8 bytes for each beginning that is held out, and where rows are drawn 30 bytes a row.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from math import floor
from typing import TYPE_CHECKING

from spin_core.data.ingest import SourceRows, beginning_of, place_of, prompt_of, row_of
from spin_core.data.rows import Row, fraction

if TYPE_CHECKING:
    import numpy

Wanted = Callable[[str], bool]
"""Of what a conversation begins with, whether its rows are."""


@dataclass(frozen=True)
class SetRows:
    """What one set holds: rows to train on, and `test` where it has held-out ones of its own."""

    name: str
    train: SourceRows
    test: SourceRows | None


class Side:
    """The rows of one side, of all sets, sorted by id: of a prompt that several sets have those of the first. May be
    read again."""

    def __init__(self, parts: Sequence[tuple[str, SourceRows, Wanted]]):
        self._parts = parts

    def __iter__(self) -> Iterator[Row]:
        for _, lines in self._by_prompt():
            first = None
            for number, line in lines:
                first = number if first is None else first
                if number == first:
                    yield row_of(line, self._parts[number][0])

    def reject_repeated(self) -> None:
        """A reject for each row whose prompt an earlier set has."""
        for _, lines in self._by_prompt():
            first, kept = next(lines)
            for number, line in lines:
                if number != first:
                    self._parts[number][1].reject(line, "duplicate", f"the same prompt as {place_of(kept)}")

    def _by_prompt(self) -> Iterator[tuple[bytes, Iterator[tuple[int, bytes]]]]:
        """Prompt → its lines with the number of their part, by these numbers."""
        streams = [_numbered(number, rows.lines(wanted)) for number, (_, rows, wanted) in enumerate(self._parts)]
        merged = heapq.merge(*streams, key=lambda one: (prompt_of(one[1]), one[0]))
        return groupby(merged, key=lambda one: prompt_of(one[1]))  # type: ignore[return-value]


def _numbered(number: int, lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    return ((number, line) for line in lines)


def sides(sets: Sequence[SetRows], test_fraction: float, seed: int) -> tuple[Side, Side]:
    """What is trained on and what is held out, all else rejected: `also held out`, and `duplicate` between sets."""

    def drawn(begun: str) -> bool:
        """By beginning, not by row: the turns of one conversation must not fall on both sides."""
        return fraction(seed, "split", begun) < test_fraction

    own = [(one.name, one.test, _all) if one.test else (one.name, one.train, drawn) for one in sets]
    held = _among(beginning_of(line) for _, rows, wanted in own for line in rows.lines(wanted))
    for one in sets:
        for line in one.train.lines(held):
            begun = beginning_of(line)
            if one.test or not drawn(begun):
                begins = "" if prompt_of(line) == begun.encode() else "begins with "
                one.train.reject(line, "also held out", f"{begins}prompt {begun}")
    train = Side([(one.name, one.train, lambda begun: not held(begun)) for one in sets])
    test = Side(own)
    if len(sets) > 1:
        train.reject_repeated()
        test.reject_repeated()
    return train, test


def _all(begun: str) -> bool:
    return True


def _among(beginnings: Iterable[str]) -> Wanted:
    """Whether one is among these; 8 bytes each, and as much while they are sorted."""
    import numpy

    numbers = array("Q", numpy.unique(numpy.fromiter((int(one, 16) for one in beginnings), numpy.uint64)).tobytes())

    def has(beginning: str) -> bool:
        at = bisect_left(numbers, int(beginning, 16))
        return at < len(numbers) and numbers[at] == int(beginning, 16)

    return has


def sizes(counts: Sequence[int], limits: Sequence[int], weights: Sequence[float], limit: int) -> list[int]:
    """How many of its `counts` rows each set gives: its limit (0: all); or with `weights` its share, rounded down, of
    `limit` rows, or of the most of which every set has its share. Where the others give more rows, or `limit` is more,
    no set gives fewer."""
    if not weights:
        return [min(count, most or count) for count, most in zip(counts, limits, strict=True)]
    most = _most(counts, weights)
    total = min(most, Fraction(limit)) if limit else most
    return [floor(share * total) for share in _shares(weights)]


def _shares(weights: Sequence[float]) -> list[Fraction]:
    exact = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth, so that rounding down is exact
    return [weight / sum(exact) for weight in exact]


def _most(counts: Sequence[int], weights: Sequence[float]) -> Fraction:
    """The largest total of which every set has its share."""
    return min(Fraction(count) / share for count, share in zip(counts, _shares(weights), strict=True))


class Draw:
    """The rows of a side that are used: of each set, and of all together, those of smallest seeded hash, so that a
    larger number keeps what a smaller one drew. `seen` and `given`: rows of each set, after the draw."""

    def __init__(self, names: Sequence[str], limits: Sequence[int], weights: Sequence[float], limit: int, seed: int):
        self.names, self.seen, self.given = list(names), [0] * len(names), [0] * len(names)
        self._limits, self._weights, self._limit, self._seed = limits, weights, limit, seed

    def short(self) -> str:
        """The set that has too few rows for its weight, so that others, or `limit`, get fewer; empty where none has."""
        most = _most(self.seen, self._weights) if self._weights else 0
        fewer = most < self._limit if self._limit else self.given != self.seen
        used_up = (name for name, given, seen in zip(self.names, self.given, self.seen, strict=True) if given == seen)
        return next(used_up) if self._weights and fewer else ""

    def of(self, rows: Iterable[Row]) -> Iterator[Row]:
        """`rows` are read twice where not all are taken, sorted by id: of equal hashes the smaller id is drawn."""
        number = {name: number for number, name in enumerate(self.names)}
        if not any((self._limit, *self._limits, *self._weights)):
            for row in rows:
                self.seen[number[row.source]] += 1
                yield row
            self.given = list(self.seen)
            return
        import numpy

        marks, owner = array("d"), array("H")
        for row in rows:
            marks.append(fraction(self._seed, "limit", row.id))
            owner.append(number[row.source])
        mark, own = numpy.frombuffer(marks), numpy.frombuffer(owner, numpy.uint16)
        self.seen = numpy.bincount(own, minlength=len(self.names)).tolist()
        taken = numpy.zeros(len(mark), bool)
        for which, most in enumerate(sizes(self.seen, self._limits, self._weights, self._limit)):
            taken[_smallest(mark, numpy.flatnonzero(own == which), most)] = True
        if self._limit and not self._weights:
            chosen = _smallest(mark, numpy.flatnonzero(taken), self._limit)
            taken[:] = False
            taken[chosen] = True
        self.given = numpy.bincount(own[taken], minlength=len(self.names)).tolist()
        yield from (row for row, is_taken in zip(rows, taken, strict=True) if is_taken)


def _smallest(mark: numpy.ndarray, where: numpy.ndarray, most: int) -> numpy.ndarray:
    """Of the places `where` those of the smallest marks; of equal ones the first."""
    import numpy

    return where if len(where) <= most else where[numpy.argsort(mark[where], kind="stable")[:most]]
