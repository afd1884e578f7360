"""Intervals are honest: they hold the truth as often as they claim, also over few rows."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from spin_core.analysis.statistics import bootstrap, mean, student_t

RESAMPLES = 400


def test_holds_the_true_mean_as_often_as_it_says() -> None:
    """Catches an interval of single rows (too wide) and one without the square root of n or of 68 % (too narrow)."""
    draws = np.random.default_rng(0)
    for rows in (30, 200):
        results = [bootstrap(draws.normal(0.3, 1, rows), 0.95, RESAMPLES, seed) for seed in range(400)]
        assert all(one and one.low < one.value < one.high and one.rows == rows for one in results)
        held = np.mean([one.low <= 0.3 <= one.high for one in results if one])
        assert 0.92 < held < 0.985, (rows, held)


def test_is_a_function_of_its_arguments() -> None:
    """Catches a generator without a seed, one of numpy's global state, and one that is never redrawn."""
    data = list(np.random.default_rng(1).normal(size=50))
    one, again, other = (bootstrap(data, 0.95, RESAMPLES, seed) for seed in (7, 7, 8))
    assert one == again != other
    wide, narrow = bootstrap(data, 0.99, RESAMPLES, 7), bootstrap(data, 0.8, RESAMPLES, 7)
    assert wide and narrow and wide.low < narrow.low and narrow.high < wide.high


def test_resamples_in_blocks_are_as_many(monkeypatch) -> None:
    """Catches a last block that is lost: with blocks of 64 draws the bounds are those of as many resamples."""
    data = list(np.random.default_rng(1).normal(size=50))
    at_once = bootstrap(data, 0.95, RESAMPLES, 7)
    monkeypatch.setattr("spin_core.analysis.statistics.BLOCK", 64 * 50)
    parts = bootstrap(data, 0.95, RESAMPLES, 7)
    assert at_once and parts and parts.low == pytest.approx(at_once.low, abs=0.05)
    assert (parts.low, parts.high) == (at_once.low, at_once.high)  # one stream of draws, whatever the block


@pytest.mark.parametrize(("gained", "lost", "clear"), [(4, 0, False), (5, 0, False), (6, 0, True), (9, 1, True)])
def test_few_rows_that_changed_say_nothing(gained: int, lost: int, clear: bool) -> None:
    """Catches a bootstrap of a few coin flips: four rows gained and none lost are one of eight (McNemar, two-sided)."""
    result = bootstrap([1.0] * gained + [-1.0] * lost + [0.0] * 190, 0.95, 2000, 1)
    assert result and (result.low > 0) == clear


def test_edges() -> None:
    """Catches a crash on no row, one row or equal rows, and rounding that makes equal rows differ."""
    assert bootstrap([], 0.95, RESAMPLES, 1) is None
    same = bootstrap([0.1] * 7, 0.95, RESAMPLES, 1)
    assert same and same.low == same.value == same.high == 0.1
    none = bootstrap([0.0] * 40, 0.95, RESAMPLES, 1)
    assert none and none.low == 0 == none.high


@pytest.mark.parametrize(
    ("confidence", "free", "quantile"),
    [
        (0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 3, 3.182), (0.95, 4, 2.776), (0.95, 9, 2.262), (0.95, 19, 2.093),
        (0.95, 29, 2.045), (0.95, 1000, 1.962), (0.8, 1, 3.078), (0.8, 5, 1.476), (0.99, 1, 63.657), (0.99, 2, 9.925),
        (0.99, 10, 3.169), (0.99, 120, 2.617), (0.999, 4, 8.610),
    ],
)  # fmt: skip
def test_student_t_has_the_quantiles_of_the_tables(confidence: float, free: int, quantile: float) -> None:
    """Catches the series for many degrees of freedom taken for few: 7.16 where 12.71 is right at two rows."""
    assert student_t(confidence, free) == pytest.approx(quantile, rel=3e-4)


def test_student_t_falls_to_the_normal_without_a_jump() -> None:
    """Catches a step where the exact sum ends and the series begins."""
    quantiles = [student_t(0.95, free) for free in range(1, 200)]
    assert quantiles == sorted(quantiles, reverse=True) and 1.96 < quantiles[-1] < 1.973
    assert quantiles[18] - quantiles[19] < 0.01


def test_bounds_over_few_rows_are_those_of_student_t() -> None:
    """Catches tails of the series: at five rows they let 1 in 450 resamples outside, and t (2.776) 1 in 1,052."""
    data, (t, z) = [0.1, 0.5, 0.6, 1.0, 1.7], (2.776, 1.959964)
    result = bootstrap(data, 0.95, 20_000, 3)
    draws = np.random.Generator(np.random.Philox(3)).integers(0, 5, size=(20_000, 5))
    tail = NormalDist().cdf(-((5 / 4) ** 0.5) * t)
    low, high = np.quantile(np.asarray(data)[draws].mean(axis=1), (tail, 1 - tail))
    assert result and (result.low, result.high) == pytest.approx((low, high), abs=1e-3)
    assert tail < NormalDist().cdf(-((5 / 4) ** 0.5) * 2.7295) < NormalDist().cdf(-z)


def test_mean_has_the_variance_of_a_sample() -> None:
    """Catches a spread over n in place of n − 1, which at two rows is 1.4 times too narrow, weighted or not."""
    plain, weighted = mean([1.0, 3.0]), mean([1.0, 3.0], [5.0, 5.0])
    assert plain == weighted and plain and (plain.value, plain.rows) == (2.0, 2)
    assert plain.high - plain.value == pytest.approx(1.959964)
    heavy = mean([1.0, 3.0], [30.0, 10.0])
    assert heavy and heavy.value == 1.5
    assert heavy.high - 1.5 == pytest.approx(1.959964 * (((30 * 0.5) ** 2 + (10 * 1.5) ** 2) * 2) ** 0.5 / 40)
    assert mean([1.0]) is None is mean([])
