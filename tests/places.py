"""Where a step of a made-up ledger stands, from the label that the DAG gives such a step."""

from __future__ import annotations

import re
from typing import Any

from spin_core.job import Entry, Place


def entry(stage: str, label: str, *more: Any, **fields: Any) -> Entry:
    """A ledger entry with the place that flows/spin.py gives a step of this label (a run that starts with θ_0)."""
    return Entry(stage, label, *more, place=place(stage, label), **fields)


def place(stage: str, label: str) -> Place:
    """`iter 0, shard 1/2`, `iter 1, pairs 0`, `θ_2`, `instead of 1 iter`; nothing of another one."""
    numbers = [int(n) for n in re.findall(r"\d+", label)]
    if "instead of" in label:
        return Place("control", numbers[0] - 1)
    if label.startswith("θ_"):
        k = numbers[0]
        return Place("import" if stage == "import_model" else "iteration" if k else "start", k - 1 if k else None, k)
    if not re.match(r"iter \d", label):
        return Place()
    t = numbers[0]
    if stage == "import_pairs":
        return Place("import", t)
    if "shard" in label:
        return Place("iteration", t, shard=(numbers[1], numbers[2]))
    return Place("iteration", t, t + 1 if stage == "finetune" else None, numbers[1] if stage == "score" else None)
