"""Every interval of the project, by one rule for each kind of figure.

A rate: Wilson's score interval. A mean: 1.96 standard errors with the n − 1 variance to either side; a mean over tokens
is a ratio of two sums over rows, linearised. A rate's change on the same rows: Wald, paired. What is decided by (the
gate, two runs side by side): a bootstrap of the paired differences, widened by Student's t for few rows.

Is not: a test over seeds. Rows vary, the training run does not: another run of the same model is another draw that none
of these sees. Rows that share a source (questions about one text) count as independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK = 1 << 22  # indices drawn at a time: 32 MiB
NORMAL = NormalDist()
Z95 = 1.959964  # the normal distribution's 97.5 % point
FEW = 20  # degrees of freedom below which the series for Student's t is off in the fourth digit or before


@dataclass(frozen=True)
class Interval:
    """A figure over `rows` rows, and the bounds of its interval."""

    value: float
    low: float
    high: float
    rows: int


def rate(value: float, rows: int) -> Interval:
    """95 % score interval of a rate seen on `rows` independent rows (Wilson 1927). Stays inside [0, 1], rates 0 and 1
    too."""
    square = Z95 * Z95
    centre = (value + square / (2 * rows)) / (1 + square / rows)
    half = Z95 / (1 + square / rows) * math.sqrt(value * (1 - value) / rows + square / (4 * rows * rows))
    low, high = min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half))  # holds it, rounding aside
    return Interval(value, low, high, rows)


def rate_change(pairs: Sequence[tuple[float, float]]) -> tuple[Interval, int, int] | None:
    """95 % interval of the change of a rate from the first to the second of each pair (0: no, else yes), and how many
    rows were gained and lost. None without pairs."""
    if not pairs:
        return None
    gained = sum(1 for before, after in pairs if after and not before)
    lost = sum(1 for before, after in pairs if before and not after)
    count, value = len(pairs), (gained - lost) / len(pairs)
    half = Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    return Interval(value, value - half, value + half, count), gained, lost


def mean(values: Sequence[float], weights: Sequence[float] | None = None) -> Interval | None:
    """95 % interval of a mean, with `weights` (tokens of a row) of a weighted one; None below two values."""
    count = len(values)
    if count < 2:
        return None
    if weights is None:
        value = math.fsum(values) / count
        half = Z95 * math.sqrt(math.fsum((x - value) ** 2 for x in values) / (count - 1) / count)
    else:
        total = math.fsum(weights)
        value = math.fsum(x * weight for x, weight in zip(values, weights, strict=True)) / total
        squares = math.fsum((weight * (x - value)) ** 2 for x, weight in zip(values, weights, strict=True))
        half = Z95 * math.sqrt(squares * count / (count - 1)) / total
    return Interval(value, value - half, value + half, count)


def bootstrap(differences: Sequence[float], confidence: float, resamples: int, seed: int) -> Interval | None:
    """Percentile bootstrap of the mean (Efron 1979), or None without rows. Equal arguments give equal bounds.

    Two remedies for what makes the plain one too sure of itself: the tails are moved out for few rows (`_tail`), and
    where every difference is −1, 0 or 1 (an answer became right or wrong) the bounds hold zero unless McNemar's exact
    test, too, says that it is not chance: four rows gained and none lost are one of eight, and bootstrapped one of 27.
    """
    import numpy as np

    data = np.asarray(differences, dtype=np.float64)
    rows = len(data)
    if not rows:
        return None
    value = float(data.mean())
    if rows == 1 or (data == data[0]).all():
        low = high = value = float(data[0])
    else:
        draws, means = np.random.Generator(np.random.Philox(seed)), []
        size = max(1, BLOCK // rows)
        for begin in range(0, resamples, size):
            picked = draws.integers(0, rows, size=(min(size, resamples - begin), rows))
            means.append(data[picked].mean(axis=1))
        tail = _tail(confidence, rows)
        low, high = (float(bound) for bound in np.quantile(np.concatenate(means), (tail, 1 - tail)))
    if np.isin(data, (-1.0, 0.0, 1.0)).all() and _by_chance(data) > 1 - confidence:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(value, low, high, rows)


def student_t(confidence: float, free: int) -> float:
    """Two-sided quantile of Student's t with `free` ≥ 1 degrees of freedom: 12.706 for 0.95 and 1."""
    if free >= FEW:
        z = NORMAL.inv_cdf((1 + confidence) / 2)
        return z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)  # A&S 26.7.5
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halves the angle's interval to less than a float can show
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, free) < confidence else (low, angle)
    return math.sqrt(free) * math.tan(low)


def _within(angle: float, free: int) -> float:
    """P(|t| < √free · tan angle), exactly (A&S 26.7.3 and 26.7.4)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    term, total = (cosine, 0.0) if free % 2 else (1.0, 0.0)
    for k in range(free % 2 + 1, free, 2):  # the next term has cos² and k / (k + 1) more
        total += term
        term *= cosine**2 * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if free % 2 else sine * total


def _tail(confidence: float, rows: int) -> float:
    """The share of resampled means outside of each bound: less than half of 1 − confidence by as much as Student's t is
    wider than the normal and n / (n − 1) above one (Hesterberg 2015, "expanded percentile interval")."""
    return NORMAL.cdf(-math.sqrt(rows / (rows - 1)) * student_t(confidence, rows - 1))


def _by_chance(data: NDArray[np.float64]) -> float:
    """Two-sided p-value of McNemar's exact test: the rows that changed fall to either side like a coin."""
    gained, lost = int((data > 0).sum()), int((data < 0).sum())
    moved = gained + lost
    either = 2 * sum(math.comb(moved, k) for k in range(min(gained, lost) + 1)) / (1 << moved)
    return min(1.0, either)
