"""What the steps of a run cost: time, tokens, GPU hours, and how much of each was cached: `saved` is what was not
computed again, though an earlier try of the same run may have computed it.

Is not: a clock. Times are those of the records, of when a step was computed; steps side by side count each their own.
A GPU that several steps shared counts for each by its share. Steps on CPU have no GPU hours but a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from spin_core.analysis.results import number
from spin_core.config.stage_table import ORDER
from spin_core.job import Entry

FIGURES = ("seconds", "gpu_hours", "cpu_hours", "generated", "trained", "scored")


Facts = Mapping[str, Any]


class StageCosts(TypedDict):
    """Of a stage's steps: how many, how many of them cached, and FIGURES of those that ran (used) and of the cached
    (saved)."""

    stage: str
    steps: int
    cached: int
    used: dict[str, float]
    saved: dict[str, float]


class Costs(TypedDict):
    """By stage in the order of the DAG, of all, and the names of the GPUs."""

    lines: list[StageCosts]
    total: StageCosts
    gpus: list[str]


def costs(steps: Sequence[Entry], facts: Callable[[Entry], Facts]) -> Costs:
    """What the steps cost.

    `steps` are ledger entries; `facts` gives the facts of a step's record, {} where there is none.
    """
    known = [(step, dict(facts(step))) for step in steps]
    per_pair = _tokens_per_pair(known)
    lines: dict[str, StageCosts] = {}
    total = _line("total")
    names: dict[str, None] = {}
    for step, fact in known:
        device = fact.get("device")
        if isinstance(device, dict) and device.get("name"):
            names[str(device["name"])] = None
        cached = step.state == "Cached"
        for line in (lines.setdefault(step.stage, _line(step.stage)), total):
            line["steps"] += 1
            line["cached"] += cached
            for name, value in _figures(step, fact, per_pair).items():
                line["saved" if cached else "used"][name] += value
    ordered = sorted(lines.values(), key=lambda one: ORDER.index(one["stage"]) if one["stage"] in ORDER else len(ORDER))
    return {"lines": ordered, "total": total, "gpus": list(names)}


def _line(stage: str) -> StageCosts:
    none = dict.fromkeys(FIGURES, 0.0)
    return {"stage": stage, "steps": 0, "cached": 0, "used": none, "saved": dict(none)}


def _figures(step: Entry, fact: Facts, per_pair: Mapping[int | None, float]) -> dict[str, float]:
    summary, device = step.summary or {}, fact.get("device")
    seconds = number(step.seconds) or 0.0
    figures = {"seconds": seconds}
    if isinstance(device, dict):
        gpus, shared = number(device.get("gpus")) or 0.0, number(device.get("shared")) or 1.0
        figures["gpu_hours" if gpus else "cpu_hours"] = seconds / 3600 * (gpus / max(shared, 1.0) if gpus else 1.0)
    tokens = number(summary.get("tokens")) or 0.0
    if step.stage == "generate":
        figures["generated"] = tokens
    elif step.stage == "score":
        figures["scored"] = tokens
    elif step.stage == "sft":
        figures["trained"] = tokens * _passes(summary, fact)
    elif step.stage == "finetune":
        scored = (number(summary.get("pairs")) or 0.0) * per_pair.get(step.place.iteration, 0.0)
        figures["trained"] = (tokens or scored) * _passes(summary, fact)  # older records have no tokens of their own
    return figures


def _passes(summary: Facts, fact: Facts) -> float:
    """Passes over the rows or pairs: steps of `global_batch` of them, as `fact["config"]` says; 1 where it does not."""
    config = fact.get("config")
    config = config if isinstance(config, dict) else {}
    part = config.get("sft") or config.get("finetune") or {}
    batch, steps = number(part.get("global_batch")), number(summary.get("steps"))
    count = number(summary.get("rows")) or number(summary.get("pairs"))
    return steps * batch / count if batch and steps and count else 1.0


def _tokens_per_pair(known: Sequence[tuple[Entry, Facts]]) -> dict[int | None, float]:
    """By iteration: answer tokens of a pair, as score counted them over the pairs that the iteration trains on."""
    sums: dict[int | None, list[float]] = {}
    for step, _ in known:
        if step.stage == "score":
            tokens, pairs = (number((step.summary or {}).get(name)) or 0.0 for name in ("tokens", "pairs"))
            total = sums.setdefault(step.place.iteration, [0.0, 0.0])
            total[0] += tokens
            total[1] += pairs
    return {t: tokens / pairs for t, (tokens, pairs) in sums.items() if pairs}
