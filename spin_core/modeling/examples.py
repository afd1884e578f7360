"""What one example of finetune is: a pair, or a real answer with several generated ones; and the reference log-probs in
the same order (torch module).

What it is *not*: no scores read or checked (the stage does), no loss. A pair set's answers are joined to another's by
the row's id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spin_core.config.finetune import Finetune
from spin_core.data.rows import row_of
from spin_core.data.token_file import FILES, TokenFile
from spin_core.job import Job
from spin_core.modeling.collate import Groups, Tokens, all_answers, equal, further, read_groups


def read_examples(part: Finetune, trees: Sequence[Path], first: Path | None, same: Sequence[bool], job: Job) -> Groups:
    """The train pairs of all `trees`, oldest first; for dft each row of the newest, with all its answers.

    `first`: the pairs of iteration 0, whose generated answer is then each pair's third; not of the trees that are the
    `same`, as their own generated answer is that one. Rows that lack an answer are noted.
    """
    if part.loss == "dft":
        groups = all_answers(trees, "train", part.max_length)
        used = len(groups) + sum(int((one.rows >= 0).sum()) for one in groups.further)
        if unused := sum(len(TokenFile(tree / FILES["train"])) for tree in trees) - used:
            job.note(f"{unused:,} answers of earlier iterations are to rows without a pair in this one; left out.")
        return groups
    groups = read_groups(trees, "train", part.max_length)
    if first is None:
        return groups
    third, own = further(groups, first, "train", len(trees)), np.repeat(same, [len(file) for file in groups.files])
    if lacking := int(((third.rows < 0) & ~own).sum()):
        job.note(
            f"{lacking:,} of {len(groups):,} pairs have no answer of θ_0 (it was dropped or rejected in iteration 0) "
            "and learn without the loss's second term."
        )
    groups.further = [replace(third, rows=np.where(own, -1, third.rows))]
    return groups


def by_prompt(groups: Groups) -> list[np.ndarray]:
    """The pairs of one row whose prompt and real answer are the same tokens, whichever set they are of: of each group
    its pairs' numbers, int64, groups in the order of their first pairs. Equal texts of two rows are two groups."""
    members: dict[bytes, list[int]] = {}
    for number, id in enumerate(groups.ids):
        real = groups[number][0]
        key = hashlib.sha256(f"{row_of(id)}\x1f{real.prompt}\x1f".encode("utf-8", "surrogatepass"))
        key.update(real.ids.tobytes())
        if real.masked is not None:
            key.update(real.masked.tobytes())
        members.setdefault(key.digest(), []).append(number)
    return [np.array(own, np.int64) for own in members.values()]


class Drawn(NamedTuple):
    """What is computed together: numbers of `examples` that share a prompt, their `sequences`, each once, and of each
    example which of these are its answers, in order."""

    examples: list[int]
    sequences: list[Tokens]
    answers: list[list[int]]


def drawn(examples: Sequence[Sequence[Tokens]], numbers: list[int], shares: bool) -> Drawn:
    """Some examples; equal answers are one sequence where it `shares`."""
    sequences: list[Tokens] = []
    answers: list[list[int]] = []
    for number in numbers:
        answers.append([])
        for one in examples[number]:
            known = (at for at, other in enumerate(sequences) if shares and equal(one, other))
            answers[-1].append(next(known, len(sequences)))
            if answers[-1][-1] == len(sequences):
                sequences.append(one)
    return Drawn(numbers, sequences, answers)


def placed(groups: Sequence[Drawn], width: int) -> np.ndarray:
    """Of each example of the groups where its answers are among all their sequences, int64 [B, width]; where it has
    none, their number."""
    every = sum(len(group.sequences) for group in groups)
    rows, first = [], 0
    for group in groups:
        rows += [[first + at for at in own] + [every] * (width - len(own)) for own in group.answers]
        first += len(group.sequences)
    return np.array(rows, np.int64).reshape(-1, width)


def reference_logps(part: Finetune, groups: Groups, scores: Sequence[Sequence[np.ndarray]]) -> Tensor:
    """float32 [N, models, answers], as `SpinPairs` reads them: each group's answers in order, 0 beyond its last.

    `scores`: of each model, of each pair set in the order of `spin_core.config.finetune.scored`, [pairs, 2].
    """
    count, made = len(groups.files), []
    for sets in scores:
        own = sets[-1:] if part.loss == "dft" else sets[:count]
        made.append(_in_order(groups, np.concatenate(list(own))[groups.chosen], sets))
    shape = len(groups), len(made), groups.there().shape[1]
    return torch.from_numpy(np.stack(made, axis=1)).float() if made else torch.zeros(shape)


def _in_order(groups: Groups, pairs: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """[N, answers] from `pairs` [N, 2] and the scores of all sets, some of which have the further answers."""
    behind = [np.append(sets[one.scored][:, 1], 0.0)[one.rows] for one in groups.further]
    there = groups.there()
    values = np.where(there, np.column_stack([pairs, *behind]), 0.0)
    return np.take_along_axis(values, np.argsort(~there, axis=1, kind="stable"), axis=1)
