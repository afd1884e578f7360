"""The interval is honest: of equal models it seldom says that one is better, and of different ones it does."""

from __future__ import annotations

import numpy as np
import pytest

from spin_core.analysis.bootstrap import interval

RESAMPLES = 400


def test_holds_the_true_mean_as_often_as_it_says() -> None:
    """Catches an interval of single rows (too wide) and one without the square root of n or of 68 % (too narrow)."""
    draws = np.random.default_rng(0)
    for rows in (30, 200):
        found = [interval(draws.normal(0.3, 1, rows), 0.95, RESAMPLES, seed) for seed in range(400)]
        assert all(one and one.low < one.value < one.high and one.rows == rows for one in found)
        held = np.mean([one.low <= 0.3 <= one.high for one in found if one])
        assert 0.92 < held < 0.985, (rows, held)


def test_is_a_function_of_its_arguments() -> None:
    """Catches a generator without a seed, one of numpy's global state, and one that is never redrawn."""
    data = list(np.random.default_rng(1).normal(size=50))
    one, again, other = (interval(data, 0.95, RESAMPLES, seed) for seed in (7, 7, 8))
    assert one == again != other
    wide, narrow = interval(data, 0.99, RESAMPLES, 7), interval(data, 0.8, RESAMPLES, 7)
    assert wide and narrow and wide.low < narrow.low and narrow.high < wide.high


def test_resamples_in_blocks_are_as_many(monkeypatch) -> None:
    """Catches a last block that is lost: with blocks of 64 draws the bounds are those of as many resamples."""
    data = list(np.random.default_rng(1).normal(size=50))
    whole = interval(data, 0.95, RESAMPLES, 7)
    monkeypatch.setattr("spin_core.analysis.bootstrap.BLOCK", 64 * 50)
    parts = interval(data, 0.95, RESAMPLES, 7)
    assert whole and parts and parts.low == pytest.approx(whole.low, abs=0.05)
    assert (parts.low, parts.high) == (whole.low, whole.high)  # one stream of draws, whatever the block


@pytest.mark.parametrize(("gained", "lost", "clear"), [(4, 0, False), (5, 0, False), (6, 0, True), (9, 1, True)])
def test_few_rows_that_changed_say_nothing(gained: int, lost: int, clear: bool) -> None:
    """Catches a bootstrap of a few coin flips: four rows gained and none lost are one of eight (McNemar, two-sided)."""
    found = interval([1.0] * gained + [-1.0] * lost + [0.0] * 190, 0.95, 2000, 1)
    assert found and (found.low > 0) == clear


def test_edges() -> None:
    """Catches a crash on no row, one row or equal rows, and rounding that makes equal rows differ."""
    assert interval([], 0.95, RESAMPLES, 1) is None
    same = interval([0.1] * 7, 0.95, RESAMPLES, 1)
    assert same and same.low == same.value == same.high == 0.1
    none = interval([0.0] * 40, 0.95, RESAMPLES, 1)
    assert none and none.low == 0 == none.high
