"""The log-probs that the engine computed while it sampled, in the place of score's own: for which pairs, and whether
they are right.

Not a computation: numbers are taken over where they are of the same model, the same prompt and the same tokens, and
where a sample of them that is computed as well agrees. gather writes FILE into a pairs tree, from answers that have
log-probs: {id, split, model (content digest), token_ids, logps (their sum, in nats)} per pair.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spin_core.data.rows import fraction
from spin_core.errors import BadInput

if TYPE_CHECKING:
    from spin_core.modeling.collate import Groups

FILE = "engine_logps.jsonl"
TOLERANCE = 5e-3
"""Nats per answer by which engine and score may differ. In float32 on CPU they differed by 1.4e-4 at most
(SmolLM2-135M: 47 answers of up to 128 tokens, −331 nats; a model of 0.1 M weights: 200 of 64 tokens, −420 nats), and by
0.6 to 14 where the answer was tokenised otherwise. Times β = 0.1 it is 5e-4 in the loss's argument."""
CHECKED, CHECKED_SHARE = 32, 0.05
"""How many answers are computed to compare: so many, or this share of them where that is more."""


def usable(pairs: Sequence[tuple[str, str]], groups: Groups, tree: Path, model: str) -> dict[int, float]:
    """Positions in `pairs` (split, id) whose generated answer has its log-prob in `tree`, in nats, under `model` (a
    content digest) and for just the tokens that are scored.

    Raises BadInput naming the file where it is absent or damaged.
    """
    sampled = _read(tree / FILE, model)
    taken = {}
    for i, (pair, (_, generated)) in enumerate(zip(pairs, groups, strict=True)):
        ids, logps = sampled.get(pair, ([], 0.0))
        if ids and ids == generated.ids[generated.prompt :].tolist():
            taken[i] = logps
    return taken


def sample(pairs: Sequence[tuple[str, str]], positions: Sequence[int]) -> list[int]:
    """The `positions` that are computed as well: drawn by the hash of their ids, the same every time."""
    count = max(CHECKED, math.ceil(CHECKED_SHARE * len(positions)))
    return sorted(sorted(positions, key=lambda i: fraction("engine_logps", *pairs[i]))[:count])


def _read(path: Path, model: str) -> dict[tuple[str, str], tuple[list[int], float]]:
    """(split, id) → token ids and log-prob of the answers that were sampled from `model`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadInput(
            f"{path}: not readable ({error.strerror}); finetune.engine_logps needs pairs that were made with "
            "`generate.logprobs: true`"
        ) from None
    sampled = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            key, value = (row["split"], row["id"]), (row["token_ids"], float(row["logps"]))
            if not math.isfinite(value[1]):
                raise ValueError("a log-prob that is not finite")
            if row["model"] == model:
                sampled[key] = value
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{path}, line {number}: not readable ({error}); gather these pairs again") from None
    return sampled
