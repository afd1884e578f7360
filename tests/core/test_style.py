"""Style figures on answers that can be counted by hand."""

from __future__ import annotations

import pytest

from spin_core.analysis.answer_style import distinct_runs, loops, repetition, style, words


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the module is the module is the module", True),
        ("a a a a", True),
        ("The end. The end. The end.", True),
        ("the name of the class of the object that is given", False),
        ("return the first of the items, or none where there are none of the kind that was asked for", False),
        ("yes", False),
        ("", False),
    ],
)
def test_loops_are_words_said_again_and_again(text: str, expected: bool) -> None:
    """Catches a sound sentence that has a pair of words twice taken for a loop, and one hidden by case or signs."""
    assert loops(words(text)) is expected


def test_distinct_runs_of_all_answers_are_the_mean_of_each_ones_part() -> None:
    """Catches a share within each answer, in which answers that are all alike are as diverse as any, and parts that do
    not add up to the figure of the whole."""
    answers = [list("abcd"), list("abcx"), list("abcd"), list("ab")]
    parts = distinct_runs(answers)
    assert [runs for _, runs in parts] == [2, 2, 2, 0]
    grams = [tuple(one[i : i + 3]) for one in answers for i in range(len(one) - 2)]
    whole = sum(share * runs for share, runs in parts) / 6
    assert whole == pytest.approx(len(set(grams)) / len(grams)) == pytest.approx(0.5)
    assert parts[1][0] > parts[0][0] == parts[2][0] and parts[3] == (0, 0)
    assert distinct_runs([]) == []
