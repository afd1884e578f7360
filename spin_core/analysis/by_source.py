"""What the held-out rows of each set say of a model, where a run mixes several: the figures of the whole, of a part of
the rows, each with its interval.

Is not: a comparison of sets, which differ in how hard they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spin_core.analysis import statistics
from spin_core.analysis.results import is_finite
from spin_core.analysis.rows import Estimate, estimate

FIGURES = ("nll/real", "exact_match/greedy", "exact_match/sampled", "spin/margin", "spin/accuracy")
"""Of evaluate's metrics."""


def by_source(lines: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, dict[str, Estimate]]]:
    """Source → rows, and metric → what is measured of it there; {} where the lines of rows.jsonl name no source."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines.values():
        if isinstance(line.get("source"), str) and line["source"]:
            parts.setdefault(line["source"], []).append(line)
    return {name: (len(parts[name]), _figures(parts[name])) for name in sorted(parts)}


def metrics(lines: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The same as lines of metrics.json: `source/NAME/rows`, `source/NAME/nll/real`, …"""
    flat: dict[str, float] = {}
    for name, (rows, figures) in by_source(lines).items():
        flat[f"source/{name}/rows"] = rows
        flat |= {f"source/{name}/{metric}": figure["value"] for metric, figure in figures.items()}
    return flat


def _figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    scored = [line for line in lines if is_finite(line.get("nll")) and line.get("tokens")]
    margins = [float(line["margin"]) for line in lines if is_finite(line.get("margin"))]
    made = {
        "nll/real": _mean([line["nll"] for line in scored], [line["tokens"] for line in scored]),
        "exact_match/greedy": _rate([line.get("greedy_match") for line in lines]),
        "exact_match/sampled": _rate([line.get("sampled_match") for line in lines]),
        "spin/margin": _mean(margins),
        "spin/accuracy": _rate([(margin > 0) + 0.5 * (margin == 0) for margin in margins]),
    }
    return {metric: figure for metric, figure in made.items() if figure}


def _mean(values: Sequence[float], weights: Sequence[float] | None = None) -> Estimate | None:
    """Without bounds of one value."""
    if len(values) == 1:
        return {**estimate(values[0], None), "rows": 1}
    interval = statistics.mean(values, weights)
    return estimate(interval.value, interval) if interval else None


def _rate(values: Sequence[Any]) -> Estimate | None:
    seen = [float(value) for value in values if is_finite(value)]
    if not seen:
        return None
    value = sum(seen) / len(seen)
    return estimate(value, statistics.rate(value, len(seen)))
