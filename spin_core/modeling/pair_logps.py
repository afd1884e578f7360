"""The log-probs of pairs as they become known, and what is left to compute of them: each sequence once, those of one
prompt as one group (torch module).

What it is *not*: no model and no forward pass (`spin_core/stages/score.py`), no batches (`packing`), nor the groups
that finetune draws, which have a loss for each pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spin_core.modeling.collate import Groups, Tokens, equal
from spin_core.modeling.examples import by_prompt


class PairLogps:
    """`values`: log p of (real, generated) of each pair in nats, float64 [N, 2]; `known`: which of them are set."""

    def __init__(self, pairs: Groups):
        self.pairs = pairs
        self.values, self.known = np.zeros((len(pairs), 2)), np.zeros((len(pairs), 2), bool)
        self._members = by_prompt(pairs)

    def take(self, side: int, logps: Mapping[int, float]) -> None:
        """Set those of one side (0: real), by the pairs' numbers."""
        at = np.fromiter(logps.keys(), np.int64, len(logps))
        self.values[at, side], self.known[at, side] = list(logps.values()), True

    def missing(self, budget: int, of: Sequence[int] | None = None) -> Missing:
        """What is not known, of all pairs or of the pairs `of`, as groups of at most `budget` tokens, where a group has
        more than two sequences."""
        wanted = ~self.known
        if of is not None:
            chosen = np.zeros(len(self.pairs), bool)
            chosen[list(of)] = True
            wanted &= chosen[:, None]
        return Missing(self.pairs, self._members, wanted, budget)

    def put(self, missing: Missing, logps: Sequence[float]) -> None:
        """Set what `missing` asked for; `logps`: of its sequences, in the order of its groups."""
        rows, sides, sequences = missing.cells.T
        self.values[rows, sides] = np.array(logps, np.float64)[sequences]
        self.known[rows, sides] = True
        for own in self._members:  # of one real answer the log-prob is one, whichever pair it was asked for
            there = own[self.known[own, 0]]
            if 0 < len(there) < len(own):
                self.values[own, 0], self.known[own, 0] = self.values[there[0], 0], True

    def tokens_apart(self, taken: Sequence[int], packed: bool) -> int:
        """Tokens of the forward passes, were each pair computed by itself, without the generated answers `taken`."""
        lengths, prompts = self.pairs.lengths(), self.pairs.lengths() - self.pairs.answer_lengths()
        there = np.ones(lengths.shape, bool)
        there[list(taken), 1] = False
        lengths = lengths * there
        if packed:
            return int(lengths.sum() - (there[:, 1] * prompts[:, 1]).sum())
        return int((there.sum(axis=1) * lengths.max(axis=1)).sum())


class Missing(Sequence[list[Tokens]]):
    """Groups of sequences that share a prompt, made where they are used. `cells`: pair, side and number of the sequence
    of all that was wanted, int64 [C, 3]; equal sequences of a group are one."""

    def __init__(self, pairs: Groups, members: Sequence[np.ndarray], wanted: np.ndarray, budget: int):
        self.pairs = pairs
        cells: list[tuple[int, int, int]] = []
        self._shown: list[tuple[int, int]] = []
        """Of each sequence a pair and side that have it."""
        self._starts: list[int] = []
        """Of each group the number of its first sequence."""
        for own in members:
            asked = [(i, side) for i in own.tolist() for side in (0, 1) if wanted[i, side]]
            made: list[Tokens] = []
            first, spent = len(self._shown), 0
            for i, side in asked:
                one = pairs[i][side]
                at = next((n for n, other in enumerate(made) if equal(one, other)), len(made))
                cells.append((i, side, first + at))
                if at < len(made):
                    continue
                full = spent + one.answer > budget and first + at - self._starts[-1] >= 2 if made else True
                if full:
                    self._starts.append(first + at)
                spent = len(one) if full else spent + one.answer
                made.append(one)
                self._shown.append((i, side))
        self.cells = np.array(cells, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        end = self._starts[index + 1] if index + 1 < len(self) else len(self._shown)
        return [self.pairs[i][side] for i, side in self._shown[self._starts[index] : end]]
