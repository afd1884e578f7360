"""Style figures on answers that can be counted by hand."""

from __future__ import annotations

import pytest

from spin_core.analysis.answer_style import repetition, style


def test_repetition_counts_four_grams_that_were_there_before() -> None:
    """Catches shorter n-grams, unique ones counted, and a short answer that divides by zero."""
    assert repetition([1, 2, 3]) == 0 == repetition([])
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([7] * 8) == pytest.approx(4 / 5)  # five 4-grams, one of them new
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_distinct_is_over_all_answers_together() -> None:
    """Catches a mean of each answer's own share: two equal answers are diverse one by one."""
    figures = style([[1, 2, 3], [1, 2, 3]])
    assert figures == {"length": 3, "repetition": 0, "distinct_1": 0.5, "distinct_2": 0.5}
    assert style([[1, 2], [3]]) == {"length": 1.5, "repetition": 0, "distinct_1": 1, "distinct_2": 1}
    assert style([]) == {"length": 0, "repetition": 0, "distinct_1": 0, "distinct_2": 0}
