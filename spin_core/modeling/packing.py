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

from spin_core.modeling.collate import Tokens

Group = Sequence[Tokens]
PADDING = 0
"""The token that fills a padded batch up: any will do, as attention does not see it."""


@dataclass(frozen=True)
class Call:
    """One attention call over ragged segments: segment i's queries are the last of its keys, and causal among them.

    `q`, `k`: places in the packed sequence, int64, segments one after another; `q_lengths`, `k_lengths`: their sizes.
    Segments of `trunk` are a prompt and its first answer, plainly causal, else further answers, whose keys are their
    prompt and themselves.
    """

    trunk: bool
    q: np.ndarray
    k: np.ndarray
    q_lengths: tuple[int, ...]
    k_lengths: tuple[int, ...]


@dataclass(eq=False)
class Layout:
    """Which token of a packed sequence sees which: `calls` are that of the trunks, and where there are any that of the
    branches.

    `group`, `branch`: of each token, int64 [T]; branch 0 is a prompt. `hidden`: bool [T], keys that nobody sees, or
    None. `prepared` is what a kernel makes of it once per batch, so that no layer does it again.
    """

    calls: list[Call]
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
        and np.array_equal(s.ids[: s.prompt], first.ids[: s.prompt])
        and np.array_equal(s.mask()[: s.prompt], first.mask()[: s.prompt])
        for s in group[1:]
    )
    return shared and all(len(s) and s.mask()[0] for s in group)


def pack(groups: Sequence[Group], kernel: str = "sdpa") -> Batch:
    """Groups one after another, each prompt once, for attention by `kernel`. All must be `packable`."""
    # Of each piece (a prompt, an answer): ids, positions, mask, group, branch. Of each answer: its labels.
    pieces: list[tuple[np.ndarray, ...]] = []
    labels: list[tuple[np.ndarray, ...]] = []
    # Of each segment: start of the prompt, its length, start of the answer, its length.
    trunks: list[tuple[int, int, int, int]] = []
    branches: list[tuple[int, int, int, int]] = []
    start = sequence = 0
    for number, group in enumerate(groups):
        prompt = group[0].prompt
        end = start + prompt
        for branch, tokens in enumerate((group[0], *group)):
            cut = slice(prompt, None) if branch else slice(prompt)
            piece = tokens.ids[cut]
            of_group = np.full(len(piece), number), np.full(len(piece), branch)
            pieces.append((piece, np.arange(len(tokens))[cut], tokens.mask()[cut], *of_group))
            if branch == 0:
                continue
            if branch == 1 or len(piece):
                (trunks if branch == 1 else branches).append((start, prompt, end, len(piece)))
            # The last token of the prompt predicts the first of every answer; without a prompt nothing does.
            at = np.arange(end - 1, end + len(piece) - 1)
            if len(piece):
                at[0] = start + prompt - 1
            labelled = slice(0 if prompt else 1, None)
            labels.append((at[labelled], piece[labelled], np.full(len(at[labelled]), sequence)))
            end, sequence = end + len(piece), sequence + 1
        start = end
    ids, positions, masks, group_of, branch_of = map(_joined, zip(*pieces, strict=True))
    hidden = masks == 0
    layout = Layout(
        [_call(part, trunk) for part, trunk in ((trunks, True), (branches, False)) if trunk or part],
        group_of,
        branch_of,
        hidden if hidden.any() else None,
        max(len(tokens) for group in groups for tokens in group),
        "sdpa" if kernel == "flash_attention_2" and hidden.any() else kernel,  # flash-attn can hide no token
    )
    # With four axes the mask is handed on as it is: the layout says what it would.
    inputs = {
        "input_ids": torch.from_numpy(ids)[None], "position_ids": torch.from_numpy(positions)[None], "layout": layout,
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool),
    }  # fmt: skip
    return _batch(inputs, labels)


def pad_groups(groups: Sequence[Group], pad_id: int) -> Batch:
    """The same labels from padded sequences, each with its own copy of the prompt: for models that cannot be packed."""
    sequences = [tokens for group in groups for tokens in group]
    shape = len(sequences), max(map(len, sequences))
    ids, mask, labels = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), []
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens.ids, tokens.mask()
        labelled = np.arange(len(tokens) - tokens.targets, len(tokens))
        labels.append((row * shape[1] + labelled - 1, tokens.ids[labelled], np.full(tokens.targets, row)))
    return _batch({"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}, labels)


def _call(segments: list[tuple[int, int, int, int]], trunk: bool) -> Call:
    """The attention call of trunks (queries: prompt and answer) or of branches (queries: the answer alone)."""
    keys = [np.r_[prompt : prompt + size, own : own + length] for prompt, size, own, length in segments]
    queries = keys if trunk else [np.arange(own, own + length) for _, _, own, length in segments]
    return Call(trunk, _joined(queries), _joined(keys), tuple(map(len, queries)), tuple(map(len, keys)))


def _batch(inputs: dict[str, Any], labels: Sequence[tuple[np.ndarray, ...]]) -> Batch:
    """Of each sequence's `labels`: where they are predicted, their ids, the sequence's number."""
    predictors, targets, owners = (torch.from_numpy(_joined(part)) for part in zip(*labels, strict=True))
    return Batch(inputs, predictors, targets, owners, sequences=len(labels))


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(part, np.int64) for part in parts])
