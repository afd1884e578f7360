"""A score tree read back: the log-probs of a split's pairs, whose they are, and those of real answers that another pair
set shares.

What it is *not*: no computation (`spin_core/stages/score.py`); what is read is what was published, checked against what
the reader expects.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin_core.data.rows import FILES
from spin_core.errors import BadInput
from spin_core.modeling.collate import Groups, Tokens, read_groups


def read_scores(tree: Path, split: str, ids: Sequence[str]) -> list[tuple[float, float]]:
    """The reference log-probs (real, generated) of a split's pairs, in nats.

    Raises BadInput naming the file where it is unreadable, has not just these ids in this order, or a log-prob that is
    not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tree / "logps.parquet"
    try:
        rows = [row for row in pq.read_table(path).to_pylist() if row["split"] == split]
        scores = [(row["id"], row["real"], row["generated"]) for row in rows]
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path}: not readable ({error}); run score on these pairs again") from error
    except KeyError as error:
        raise BadInput(f"{path}: there is no column {error}; run score on these pairs again") from None
    if [id for id, *_ in scores] != list(ids):
        raise BadInput(
            f"{path}: its {len(scores)} {split} ids are not the {len(ids)} of the pairs, in their order; "
            "run score on these pairs again"
        )
    for id, *both in scores:
        if not all(isinstance(value, float) and math.isfinite(value) for value in both):
            raise BadInput(
                f"{path}: the log-probs of pair {id} are {both[0]} and {both[1]}; run score on these pairs again"
            )
    return [(real, generated) for _, real, generated in scores]


def whose(tree: Path, expected: dict[str, Any], reader: str) -> dict[str, Any]:
    """What scores.json of a score tree says of model, pairs and settings. Raises BadInput naming the file where it is
    unreadable or a field is not as `expected` by the stage `reader`."""
    path = tree / "scores.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable ({error}); run score on these pairs again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a JSON object is needed; run score on these pairs again")
    for name, value in expected.items():
        if content.get(name) != value:
            raise BadInput(
                f"{path}: `{name}` is {content.get(name)}, this {reader} has {value}; these log-probs are of other "
                "pairs, another model or other settings, so run score again with this profile"
            )
    return content


def real_logps(pairs: Groups, tree: Path, of: Path) -> dict[int, float]:
    """Positions in `pairs` whose real answer was scored in `tree`, a score of the pairs tree `of`, in nats: where
    prompt and real answer are the same tokens, as they are cut, in whichever row. Raises BadInput as `read_scores`."""
    scored: dict[bytes, float] = {}
    for split in FILES:
        there = read_groups([of], split, pairs.max_length)
        for (real, _), (logps, _) in zip(there, read_scores(tree, split, there.ids), strict=True):
            scored.setdefault(_digest(real), logps)
    digests = (_digest(real) for real, _ in pairs)
    return {i: scored[digest] for i, digest in enumerate(digests) if digest in scored}


def _digest(one: Tokens) -> bytes:
    """Of all that its log-prob depends on beside the model."""
    made = hashlib.sha256(f"{one.prompt}\x1f{len(one)}\x1f".encode())
    made.update(one.ids.tobytes())
    if one.masked is not None:
        made.update(one.mask().tobytes())
    return made.digest()
