"""What sharing the common first tokens of answers would save: the count that decides whether it is worth building."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_data import made_up_pairs, pairs_tree

from spin_core.data.rows import Pair, answer_id
from spin_core.modeling.collate import read_groups
from tests.benchmarks.bench_prefix import Prefix, pairs_in, prefix_of, rows_in, sentence, shared

ids = st.lists(st.integers(0, 3), max_size=8)


def common(one: list[int], other: list[int]) -> int:
    """First tokens that are the same."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)


@settings(max_examples=200, derandomize=True)
@given(ids, ids)
def test_of_two_answers_it_is_their_common_beginning(one: list[int], other: list[int]) -> None:
    """Catches tokens that are counted as shared behind the first that differs."""
    assert shared([one, other]) == common(one, other) == shared([np.array(other, np.int32), one])


@settings(max_examples=100, derandomize=True)
@given(st.lists(ids, max_size=5))
def test_of_several_it_is_what_a_tree_saves(answers: list[list[int]]) -> None:
    """Catches a beginning of three answers that is counted once, or thrice."""
    beginnings = {tuple(one[: n + 1]) for one in answers for n in range(len(one))}
    assert shared(answers) == sum(map(len, answers)) - len(beginnings)


def test_identical_pairs_are_left_out_and_prompts_counted() -> None:
    """Catches a share that identical answers, which training does not compute, make large."""
    found = prefix_of([(10, [[1, 2, 3], [1, 2, 4, 5]]), (7, [[1], [1]]), (4, [[1], [2], [1]])])
    assert found == Prefix(2, 1, 10 + 7 + 4 + 2, 2) and found.share == 2 / 23
    assert prefix_of([]).share == 0.0
    assert sentence("x", found) == "x: 8.7% of 23 tokens (2 groups, 1 identical pairs left out)"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of five rows, two answers each, the second of which begins as the real one."""
    made = [
        Pair(answer_id(p.id, k), p.prompt, p.real, text, "stop")
        for p in made_up_pairs(5)
        for k, text in enumerate((p.generated, f"{p.real[:12]} not."))
    ]
    return pairs_tree(tmp_path_factory.mktemp("prefix") / "pairs", made, [])


def test_tokens_of_a_tree_are_those_of_packed_training(tree: Path) -> None:
    """Catches a share of other tokens than training computes: the prompt twice, or one of the answers left out."""
    groups = read_groups([tree], "train", 1024)
    found = prefix_of(pairs_in(tree))
    assert (found.groups, found.tokens) == (10, groups.packed().sum()) and found.common > 5
    together = prefix_of(rows_in([tree, tree]))
    real = sum(groups[i][0].answer + groups[i][0].prompt for i in range(0, 10, 2))
    generated = sum(other.answer for _, other in groups)
    assert (together.groups, together.tokens) == (5, real + generated)
