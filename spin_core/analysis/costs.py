"""What the steps of a run cost: time, tokens, GPU hours, and how much of each came from the store: `saved` is what was
not computed again, though an earlier try of the same run may have computed it.

Is not: a clock. Times are those of the records, of when a step was computed; steps side by side count each their own.
A GPU that several steps shared counts for each by its share. Steps on CPU have no GPU hours; their time is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from spin_core.analysis.results import number

ORDER = (
    "demo_rows", "demo_model", "reformat", "sft", "generate", "gather", "score", "finetune", "evaluate", "harness",
    "gate", "report",
)  # fmt: skip
FIGURES = ("seconds", "gpu_hours", "cpu_hours", "generated", "trained", "scored")


def costs(steps: Sequence[Any], facts: Callable[[Any], Mapping]) -> dict:
    """{lines, total, gpus}: by stage, in the order of the DAG, `steps`, `cached`, and of the figures `used` (by the
    steps that ran) and `saved` (by those that were cached).

    `steps` are ledger entries; `facts` gives the facts of a step's record, {} where there is none.
    """
    known = [(step, dict(facts(step))) for step in steps]
    per_pair = _tokens_per_pair(known)
    lines: dict[str, dict] = {}
    names: dict[str, None] = {}
    for step, fact in known:
        device = fact.get("device")
        if isinstance(device, dict) and device.get("name"):
            names[str(device["name"])] = None
        line = lines.setdefault(step.stage, _line(step.stage))
        cached = step.state == "Cached"
        line["steps"] += 1
        line["cached"] += cached
        for name, value in _figures(step, fact, per_pair).items():
            line["saved" if cached else "used"][name] += value
    ordered = sorted(lines.values(), key=lambda one: ORDER.index(one["stage"]) if one["stage"] in ORDER else len(ORDER))
    total = _line("total")
    for line in ordered:
        for part in ("used", "saved"):
            for name in FIGURES:
                total[part][name] += line[part][name]
        total["steps"] += line["steps"]
        total["cached"] += line["cached"]
    return {"lines": ordered, "total": total, "gpus": list(names)}


def _line(stage: str) -> dict:
    return {"stage": stage, "steps": 0, "cached": 0} | {part: dict.fromkeys(FIGURES, 0.0) for part in ("used", "saved")}


def _figures(step: Any, fact: Mapping, per_pair: Mapping[str, float]) -> dict[str, float]:
    summary, device = step.summary or {}, fact.get("device")
    seconds = number(step.seconds) or 0.0
    found = {"seconds": seconds}
    if isinstance(device, dict):
        gpus, shared = number(device.get("gpus")) or 0.0, number(device.get("shared")) or 1.0
        found["gpu_hours" if gpus else "cpu_hours"] = seconds / 3600 * (gpus / max(shared, 1.0) if gpus else 1.0)
    tokens = number(summary.get("tokens")) or 0.0
    if step.stage == "generate":
        found["generated"] = tokens
    elif step.stage == "score":
        found["scored"] = tokens
    elif step.stage == "sft":
        found["trained"] = tokens * _passes(summary, fact)
    elif step.stage == "finetune":
        found["trained"] = (number(summary.get("pairs")) or 0.0) * per_pair.get(_iteration(step.label), 0.0)
        found["trained"] *= _passes(summary, fact)
    return found


def _passes(summary: Mapping, fact: Mapping) -> float:
    """Passes over the rows or pairs: steps of `global_batch` of them, as `fact["config"]` says; 1 where it does not."""
    config = fact.get("config")
    config = config if isinstance(config, dict) else {}
    part = config.get("sft") or config.get("finetune") or {}
    batch, steps = number(part.get("global_batch")), number(summary.get("steps"))
    count = number(summary.get("rows")) or number(summary.get("pairs"))
    return steps * batch / count if batch and steps and count else 1.0


def _tokens_per_pair(known: Sequence[tuple[Any, Mapping]]) -> dict[str, float]:
    """By iteration: answer tokens of a pair, as score counted them over the pairs that the iteration trains on."""
    sums: dict[str, list[float]] = {}
    for step, _ in known:
        if step.stage == "score":
            tokens, pairs = (number((step.summary or {}).get(name)) or 0.0 for name in ("tokens", "pairs"))
            total = sums.setdefault(_iteration(step.label), [0.0, 0.0])
            total[0] += tokens
            total[1] += pairs
    return {name: tokens / pairs for name, (tokens, pairs) in sums.items() if pairs}


def _iteration(label: str) -> str:
    found = re.match(r"iter \d+", label)
    return found[0] if found else ""
