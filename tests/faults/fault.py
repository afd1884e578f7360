"""A fault of the battery: how often it is tried, and the table of what came of it.

The counts are for a pull request, a night, a release; $SPINLOOP_FAULTS picks one (`make faults`: night). Identifiers
R1–R30 (reliability) and S1–S18 (security) are listed in tests/faults/README.md.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

LEVELS = ("pr", "night", "release")
LEVEL = os.environ.get("SPINLOOP_FAULTS", "pr")
if LEVEL not in LEVELS:
    raise SystemExit(f"SPINLOOP_FAULTS={LEVEL}: one of {', '.join(LEVELS)} is needed.")
# A defect that fails every trial is seen in the first few; a thousand tracebacks show no more.
ENOUGH_FAILURES = 5

TRIED: list[Fault] = []
"""Every fault that was tried in this session, in order."""

Point = TypeVar("Point")


@dataclass(eq=False)
class Fault:
    """One line of the table. `pr`, `night`, `release`: the number of random trials at each level."""

    id: str
    what: str
    pr: int = 0
    night: int = 0
    release: int = 0
    trials: int = 0
    failures: int = 0

    @property
    def count(self) -> int:
        """How many random trials this session makes."""
        return {"pr": self.pr, "night": self.night, "release": self.release}[LEVEL]

    def run(self, trial: Callable[[random.Random], object]) -> None:
        """`count` random trials, each with its own numbers; fails at the end, naming the trials that failed."""
        self.each(range(self.count), lambda number: trial(random.Random(f"{self.id} {number}")))

    def each(self, points: Iterable[Point], trial: Callable[[Point], object]) -> None:
        """One trial for every point of an enumeration; fails at the end, naming the points that failed."""
        if self not in TRIED:
            TRIED.append(self)
        failed: list[str] = []
        first: BaseException | None = None
        for point in points:
            self.trials += 1
            try:
                trial(point)
            except Exception as error:
                self.failures += 1
                first = first or error
                failed.append(f"{point!r}: {type(error).__name__}: {str(error)[:300]}")
                if len(failed) == ENOUGH_FAILURES:
                    break
        if first is not None:
            raise AssertionError(f"{self.id} {self.what}: failed at " + "; ".join(failed)) from first


def add(others: list[dict]) -> None:
    """Trials of another process of this session, as fields; a fault that was tried here too stays one line."""
    for other in (Fault(**fields) for fields in others):
        same = next((fault for fault in TRIED if (fault.id, fault.what) == (other.id, other.what)), None)
        if same:
            same.trials += other.trials
            same.failures += other.failures
        else:
            TRIED.append(other)


def upper_bound(failures: int, trials: int, confidence: float = 0.95) -> float:
    """The failure rate that so many failures in so many trials leave possible (Clopper and Pearson, one-sided).

    With no failure in n trials it is near 3/n.
    """
    if failures >= trials:
        return 1.0
    low, high = failures / trials, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        below = sum(math.comb(trials, k) * rate**k * (1 - rate) ** (trials - k) for k in range(failures + 1))
        low, high = (rate, high) if below > 1 - confidence else (low, rate)
    return high


def table(faults: Iterable[Fault], kind: Literal["text", "markdown"] = "text") -> list[str]:
    """The lines of the table: fault, trials, failures, upper bound of the failure rate at 95 %."""
    rows = [("", "fault", "trials", "failures", "rate below (95 %)")]
    for fault in sorted(faults, key=lambda fault: (fault.id[0], int(fault.id[1:]), fault.what)):
        bound = f"{100 * upper_bound(fault.failures, fault.trials):.2g} %" if fault.trials else "–"
        rows.append((fault.id, fault.what, str(fault.trials), str(fault.failures), bound))
    if kind == "markdown":
        return [f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * 5, *rows[1:])]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
