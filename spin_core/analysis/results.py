"""What the stages wrote about one model of a run, read back from their artifacts, and how much an item of a harness
task counts in the mean over tasks.

Is not: metrics (evaluate and harness compute them) nor what is made of them (`spin_core.analysis.summary`). Imports
neither torch nor pyarrow.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from spin_core.errors import BadInput


@dataclass(frozen=True)
class ModelResults:
    """One model's artifacts; a field is empty where an artifact or a file is absent. `answers`: rows.jsonl by row id;
    `steps`: metrics.jsonl of its training."""

    label: str
    kind: str
    iteration: int
    metrics: dict[str, float] = field(default_factory=dict)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    quality: dict[str, Any] = field(default_factory=dict)
    harness: dict[str, Any] = field(default_factory=dict)
    decision: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> dict[str, float]:
        """A figure of the held-out rows by row id, where it is finite; true counts 1."""
        values = {key: row.get(name) for key, row in self.answers.items()}
        return {key: float(value) for key, value in values.items() if is_finite(value)}


def read_model(
    label: str,
    kind: str,
    iteration: int,
    evaluate: Path | None = None,
    finetune: Path | None = None,
    gather: Path | None = None,
    harness: Path | None = None,
    gate: Path | None = None,
    score: Path | None = None,
) -> ModelResults:
    """Reads metrics.json and rows.jsonl, metrics.jsonl, quality.json, results.json, decision.json, scores.json. Raises
    BadInput that names file and line."""
    metrics = _object(evaluate / "metrics.json") if evaluate else {}
    answers = {str(row.get("id")): row for row in _lines(evaluate / "rows.jsonl")} if evaluate else {}
    steps = list(_lines(finetune / "metrics.jsonl")) if finetune else []
    quality = _object(gather / "quality.json") if gather else {}
    results = _object(harness / "results.json") if harness else {}
    decision = _object(gate / "decision.json") if gate else {}
    finite = {name: value for name, raw in metrics.items() if (value := number(raw)) is not None}
    scores = _object(score / "scores.json") if score else {}
    return ModelResults(label, kind, iteration, finite, answers, steps, quality, results, decision, scores)


def number(raw: object) -> float | None:
    """A finite float, or None for whatever is not one (absent, NaN, infinite, a boolean, text)."""
    return float(raw) if is_finite(raw) and not isinstance(raw, bool) else None


def is_finite(raw: object) -> TypeGuard[float]:
    """Whether `raw` is a number (or a boolean) and neither NaN nor infinite."""
    return isinstance(raw, int | float) and math.isfinite(raw)


def paired(old: Mapping[str, float], new: Mapping[str, float]) -> list[tuple[float, float]]:
    """The values of the keys that both have, in the order of the keys."""
    return [(old[key], new[key]) for key in sorted(old.keys() & new.keys())]


def weights(tasks: Mapping[str, dict[str, Any]], counts: Mapping[str, int]) -> dict[str, float]:
    """Task (or subtask) → weight of each of its items, so that the mean over all items is the mean of the tasks'
    values, as leaderboards take it: a group by its own mean, and with a minus where less is better.

    `tasks`: those of results.json. `counts`: items of each task; tasks without items count for nothing. Of a single
    task the weight is 1 and not nearly so: the paired test looks whether items are just right or wrong.
    """
    groups = {
        name: [leaf for leaf in entry.get("subtasks", [name]) if counts.get(leaf)] for name, entry in tasks.items()
    }
    total, several = sum(counts.values()), sum(map(bool, groups.values()))
    weight = {}
    for name, leaves in groups.items():
        items = sum(counts[leaf] for leaf in leaves)
        for leaf in leaves:
            part = 1 / len(leaves) if tasks[name].get("mean") == "subtasks" else counts[leaf] / items
            weight[leaf] = total / counts[leaf] * part / several * (1 if tasks[name]["higher_is_better"] else -1)
    return weight


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); run the stage that wrote it again.") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: a JSON object is needed; run the stage that wrote it again.")
    return value


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for count, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise BadInput(f"{path}, line {count}: a JSON object is needed; run the stage that wrote it again.")
            yield value
