"""What a training can at best do, from the opponent's log-probs of its pairs."""

from __future__ import annotations

import pytest

from spin_core.analysis.forecast import forecast, sentences


def test_forecast_counts_the_pairs_that_can_teach() -> None:
    """Catches identical pairs counted twice (their log-probs may differ by rounding), a preference that is turned
    round, and an entropy per answer instead of per token or with the wrong sign."""
    logps = [(-2.0, -2.0001), (-1.0, -3.0), (-4.0, -1.0), (-4.0, -2.0)]
    made = forecast(logps, [True, False, False, False], tokens=16)
    assert made == {"identical": 0.25, "preferred": 0.25, "entropy": pytest.approx(8.0001 / 16)}
    (said,) = sentences({"forecast": made})
    assert "25.0 % are identical, and in 25.0 % the opponent already" in said and "0.500 nats a token" in said
    assert "At best 50.0 % of the pairs teach" in said


def test_iteration_that_can_teach_little_is_said_to_be_unlikely_to_pay() -> None:
    """Catches a threshold on identical pairs alone, and a record from before forecasts that ends a plan."""
    few = {"identical": 0.5, "preferred": 0.46, "entropy": 0.01}
    said, warning = sentences({"forecast": few})
    assert "At best 4.0 %" in said and warning.startswith("This iteration is unlikely to pay")
    assert len(sentences({"forecast": {**few, "preferred": 0.44}})) == 1
    assert sentences({}) == sentences({"forecast": None}) == sentences({"forecast": {"identical": "x"}}) == []
