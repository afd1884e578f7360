"""Hypothesis draws the groups of sequences that `packing_data` is for."""

import numpy as np
from hypothesis import strategies as st
from packing_data import WORDS, tokens

from spin_core.modeling.packing import Group


@st.composite
def group_lists(draw: st.DrawFn, hide: bool = True) -> list[Group]:
    """One to four groups of one to three sequences: no prompt, short and long ones, empty and equal answers, hidden
    tokens. Everything that can be packed and has a token at all."""
    return [draw(_groups(hide)) for _ in range(draw(st.integers(1, 4)))]


@st.composite
def _groups(draw: st.DrawFn, hide: bool) -> Group:
    words = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prompt = words.integers(0, WORDS, draw(st.sampled_from([0, 1, 2, 5, 17])))
    answers: list[np.ndarray] = []
    for _ in range(draw(st.integers(1, 3))):
        least = 0 if len(prompt) else 1
        answer = words.integers(0, WORDS, draw(st.sampled_from([least, 1, 2, 3, 9, 14])))
        answers.append(answers[0] if answers and draw(st.booleans()) and draw(st.booleans()) else answer)
    rate = draw(st.sampled_from([0.0, 0.3, 1.0])) if hide else 0.0
    # The very first token stays visible: without it a sequence has a token that sees nothing.
    of_prompt = [i for i in range(1, len(prompt)) if words.random() < rate]
    return [
        tokens(
            prompt, a, of_prompt + [len(prompt) + i for i in range(not len(prompt), len(a)) if words.random() < rate]
        )
        for a in answers
    ]
