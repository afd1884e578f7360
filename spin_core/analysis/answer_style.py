"""How answers read, without a judge: their length, and how much they repeat themselves and each other. Over tokens.

Is not: quality. A model that collapses shows here first: its answers grow to the cap, say the same again, and become
alike. Sound answers to similar prompts are alike as well, so the figures mean something beside an earlier model's.
"""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 4  # tokens of what counts as repeated: shorter ones recur in sound text, too


def style(answers: Sequence[Sequence[int]]) -> dict[str, float]:
    """`length`: mean tokens · `repetition`: its mean · `distinct_1`, `distinct_2`: distinct n-grams per n-gram of all
    answers (Li et al. 2016, arXiv 1510.03055)."""
    count = max(1, len(answers))
    return {
        "length": sum(map(len, answers)) / count,
        "repetition": sum(map(repetition, answers)) / count,
        "distinct_1": _distinct(answers, 1),
        "distinct_2": _distinct(answers, 2),
    }


def repetition(tokens: Sequence[int]) -> float:
    """Share of an answer's 4-grams that it had before; 0 of a shorter answer."""
    grams = _grams(tokens, GRAM)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    grams = [gram for tokens in answers for gram in _grams(tokens, n)]
    return len(set(grams)) / max(1, len(grams))


def _grams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))
