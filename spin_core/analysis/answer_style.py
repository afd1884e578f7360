"""How answers read, without a judge: their length, how much they repeat themselves and each other, whether they loop.

Is not: quality. A model that collapses shows here first: its answers grow to the cap, say the same again, and become
alike. Sound answers to similar prompts are alike as well, so the figures mean something beside an earlier model's and
the real answers'. Over tokens, but for loops and for what is distinct over runs of three words: those are of the text,
so that they mean the same with every tokenizer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

GRAM = 4  # tokens of what counts as repeated: shorter ones recur in sound text, too
RUN = 3  # words of a run
LOOP = 0.2
"""Of an answer's pairs of neighbouring words, the share that it had before, above which it loops. Of sentences and
paragraphs of manuals 3 to 6 % are above it, of "the module is the module is the module" all."""


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
    return _again(_grams(tokens, GRAM))


def words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"\w+", text.lower())


def loops(said: Sequence[str]) -> bool:
    """Whether an answer of these words says the same again and again. Of single sentences it sees little: from six
    words on one pair that is there twice is no loop, as it is a fifth of the pairs or less."""
    return _again(_grams(said, 2)) > LOOP


def distinct_runs(answers: Sequence[Sequence[str]]) -> list[tuple[float, int]]:
    """Of each answer's words: how much of its runs of three is its own, and how many runs it has. A run that is there k
    times counts 1/k at each place, so the mean weighted by the counts is distinct runs per run of all answers."""
    runs = [_grams(said, RUN) for said in answers]
    places = Counter(run for own in runs for run in own)
    return [(sum(1 / places[run] for run in own) / max(1, len(own)), len(own)) for own in runs]


def _distinct(answers: Sequence[Sequence[int]], n: int) -> float:
    grams = [gram for tokens in answers for gram in _grams(tokens, n)]
    return len(set(grams)) / max(1, len(grams))


def _again(grams: Sequence[tuple[Any, ...]]) -> float:
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _grams(items: Sequence[Any], n: int) -> list[tuple[Any, ...]]:
    return list(zip(*(items[i:] for i in range(n)), strict=False))
