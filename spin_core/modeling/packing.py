"""Sequences to the batches that a model reads: packed with each prompt once, or padded (torch module).

A *group* is the sequences that share a prompt: the two answers of a pair, or one row. Packed, a group is
`prompt · answer · answer` in one long sequence without padding; which token sees which is the `Layout`, and positions
restart behind the prompt, so that every answer is computed as if it stood alone behind it. What it is *not*: no
attention kernel (that is `attention`), no tokenisation (that is `collate`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spin_core.modeling.collate import Tokens, pad

Group = Sequence[Tokens]


@dataclass(frozen=True)
class Call:
    """One attention call over ragged segments: segment i's queries are the last of its keys, and causal among them.

    `q`, `k`: places in the packed sequence, int64, segments one after another; `q_lengths`, `k_lengths`: their sizes.
    """

    q: np.ndarray
    k: np.ndarray
    q_lengths: tuple[int, ...]
    k_lengths: tuple[int, ...]


@dataclass(eq=False)
class Layout:
    """Which token of a packed sequence sees which: `trunks` are prompt and first answer, plainly causal; `branches`
    the further answers, which see their prompt and themselves.

    `group`, `branch`: of each token, int64 [T]; branch 0 is a prompt. `hidden`: bool [T], keys that nobody sees, or
    None. `prepared` is what a kernel makes of it once per batch, so that no layer does it again.
    """

    trunks: Call
    branches: Call | None
    group: np.ndarray
    branch: np.ndarray
    hidden: np.ndarray | None
    longest: int
    kernel: str = "sdpa"
    prepared: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs. `inputs`: the model's arguments. The n-th label is `targets[n]`, predicted at place
    `predictors[n]` of the flattened input, and belongs to sequence `owners[n]` of `sequences`; all int64 [N]."""

    inputs: dict[str, Any]
    predictors: Tensor
    targets: Tensor
    owners: Tensor
    sequences: int

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.inputs.items()}
        predictors, targets, owners = (t.to(device) for t in (self.predictors, self.targets, self.owners))
        return Batch(moved, predictors, targets, owners, self.sequences)


def tokens_of(group: Group) -> int:
    """Tokens that a group takes packed: its prompt once, and its answers."""
    return sum(len(s) for s in group) - (len(group) - 1) * group[0].prompt


def packable(group: Group) -> bool:
    """Whether the group's sequences have one prompt, and a first token that can be seen (else it would see nothing)."""
    first = group[0]
    shared = all(
        s.prompt == first.prompt
        and np.array_equal(_prompt(s), _prompt(first))
        and np.array_equal(s.mask()[: s.prompt], first.mask()[: s.prompt])
        for s in group[1:]
    )
    return shared and all(len(s) and s.mask()[0] for s in group)


def _prompt(tokens: Tokens) -> np.ndarray:
    return tokens.ids[: tokens.prompt]


def pack(groups: Sequence[Group], kernel: str = "sdpa") -> Batch:
    """Groups one after another, each prompt once, for attention by `kernel`. All must be `packable`."""
    ids, positions, group_of, branch_of, masks = [], [], [], [], []
    predictors, targets, owners = [], [], []
    # Of each: start of the prompt, its length, start of the answer, its length.
    trunks: list[tuple[int, int, int, int]] = []
    branches: list[tuple[int, int, int, int]] = []
    start = sequence = 0
    for number, group in enumerate(groups):
        prompt = group[0].prompt
        end = start + prompt
        parts = [(_prompt(group[0]), np.arange(prompt), 0, group[0].mask()[:prompt])]
        for branch, tokens in enumerate(group, 1):
            answer = tokens.ids[prompt:]
            parts.append((answer, np.arange(prompt, len(tokens)), branch, tokens.mask()[prompt:]))
            (trunks if branch == 1 else branches).append((start, prompt, end, len(answer)))
            # The last token of the prompt predicts the first of every answer; without a prompt nothing does.
            at = np.arange(end - 1, end + len(answer) - 1)
            if len(answer):
                at[0] = start + prompt - 1
            labelled = slice(0 if prompt else 1, None)
            predictors.append(at[labelled])
            targets.append(answer[labelled])
            owners.append(np.full(len(at[labelled]), sequence))
            end, sequence = end + len(answer), sequence + 1
        for piece, place, branch, mask in parts:
            ids.append(piece)
            positions.append(place)
            masks.append(mask)
            group_of.append(np.full(len(piece), number))
            branch_of.append(np.full(len(piece), branch))
        start = end
    hidden = _joined(masks) == 0
    layout = Layout(
        _call(trunks, trunk=True),
        _call(branches, trunk=False) if any(length for *_, length in branches) else None,
        _joined(group_of),
        _joined(branch_of),
        hidden if hidden.any() else None,
        max(len(tokens) for group in groups for tokens in group),
        "sdpa" if kernel == "flash_attention_2" and hidden.any() else kernel,  # flash-attn can hide no token
    )
    # With four axes the mask is handed on as it is: the layout says what it would.
    inputs = {
        "input_ids": _row(ids), "position_ids": _row(positions), "layout": layout,
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
    }  # fmt: skip
    return Batch(inputs, *_labels(predictors, targets, owners), sequences=sequence)


def pad_groups(groups: Sequence[Group], pad_id: int) -> Batch:
    """The same labels from padded sequences, each with its own copy of the prompt: for models that cannot be packed."""
    sequences = [tokens for group in groups for tokens in group]
    batch = pad(sequences, pad_id)
    width = batch["input_ids"].shape[1]
    predictors = [row * width + np.arange(len(s) - s.targets, len(s)) - 1 for row, s in enumerate(sequences)]
    targets = [s.ids[len(s) - s.targets :] for s in sequences]
    owners = [np.full(s.targets, row) for row, s in enumerate(sequences)]
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    return Batch(inputs, *_labels(predictors, targets, owners), sequences=len(sequences))


def _call(segments: list[tuple[int, int, int, int]], trunk: bool) -> Call:
    """The attention call of trunks (queries: prompt and answer) or of branches (queries: the answer alone)."""
    segments = segments if trunk else [s for s in segments if s[3]]
    keys = [np.r_[prompt : prompt + size, own : own + length] for prompt, size, own, length in segments]
    queries = keys if trunk else [np.arange(own, own + length) for _, _, own, length in segments]
    lengths = (tuple(map(len, queries)), tuple(map(len, keys)))
    return Call(_joined(queries), _joined(keys), *lengths)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.int64) for part in parts])


def _labels(*parts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    predictors, targets, owners = (torch.from_numpy(_joined(part)) for part in parts)
    return predictors, targets, owners


def _row(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(_joined(parts))[None]
