"""What was measured of one model of a run on held-out rows and by the harness, with 95 % intervals: for its card.

Is not: the report's table, which compares models (`spin_core/analysis/figures.py`). Reads what evaluate and harness
wrote; a figure that is missing or not finite is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.analysis.figures import Z95, markdown_text, number, wilson

if TYPE_CHECKING:
    from spin_core.report.run_facts import RunFacts

RATES = {
    "exact_match/greedy": "exact match, greedy answers",
    "exact_match/sampled": "exact match, answers drawn at temperature 1",
    "spin/accuracy": "real answer preferred to the opponent's",
}
MEANS = {"nll/real": "nats per token of real answers", "spin/margin": "margin over the opponent"}
PLAIN = {
    "length/greedy_tokens": "tokens of a greedy answer",
    "repetition/greedy": "repeated 4-grams in a greedy answer",
    "distinct_2/greedy": "distinct 2-grams over all greedy answers",
    "truncated/greedy": "greedy answers that reached the cap",
}


@dataclass(frozen=True)
class Measure:
    """One figure. `metric` is its name in the tree, `low` and `high` its 95 % interval (None: unknown)."""

    metric: str
    told: str
    value: float
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    task: str = ""

    def line(self) -> str:
        """A row of the card's table."""
        interval = f"{self.low:.4g} to {self.high:.4g}" if self.low is not None else "–"
        return f"| {markdown_text(self.told, 120)} | {self.value:.4g} | {interval} | {self.rows or '–'} |"

    def result(self, datasets: Sequence[str]) -> Any:
        """The figure as the hub's own metadata (`EvalResult`)."""
        from huggingface_hub import EvalResult

        held_out = datasets[0] if datasets else "held-out"
        return EvalResult(
            task_type="text-generation",
            dataset_type=self.task or held_out,
            dataset_name=self.task or "held-out rows",
            metric_type=self.metric,
            metric_name=self.told,
            metric_value=float(f"{self.value:.6g}"),
        )


def measures(run: RunFacts, k: int) -> list[Measure]:
    """What `run` measured of θ_k, in the order of a card."""
    step = run.measured("evaluate", k)
    metrics = run.read(step, "metrics.json")
    rows = _rows(run.store.tree(step.digest) / "rows.jsonl") if step else []
    found = []
    for name, told in {**RATES, **MEANS, **PLAIN}.items():
        value = number(metrics.get(name))
        if value is None:
            continue
        low, high, count = interval(name, value, rows)
        found.append(Measure(name, told, value, low, high, count))
    return found + _harness(run.read(run.measured("harness", k), "results.json"))


def interval(name: str, value: float, rows: list[dict]) -> tuple[float | None, float | None, int | None]:
    """(low, high, rows) of a rate by Wilson, of a mean by its standard error; a ratio's is linearised."""
    if name.startswith("exact_match/"):
        count = sum(row.get(f"{name.partition('/')[2]}_match") is not None for row in rows)
        return (*wilson(min(max(value, 0.0), 1.0), count), count) if count else (None, None, None)
    if name == "nll/real":  # all tokens weigh alike: a ratio of two sums over rows
        pairs = [(number(row.get("nll")), number(row.get("tokens"))) for row in rows]
        known = [(nll, tokens) for nll, tokens in pairs if nll is not None and tokens]
        if len(known) < 2:
            return None, None, len(rows) or None
        total = sum(tokens for _, tokens in known)
        spread = math.sqrt(sum((tokens * (nll - value)) ** 2 for nll, tokens in known)) / total
        return value - Z95 * spread, value + Z95 * spread, len(known)
    margins = [m for row in rows if (m := number(row.get("margin"))) is not None]
    if name == "spin/accuracy" and margins:
        return (*wilson(min(max(value, 0.0), 1.0), len(margins)), len(margins))
    if name == "spin/margin" and len(margins) > 1:
        mean = sum(margins) / len(margins)
        spread = math.sqrt(sum((m - mean) ** 2 for m in margins) / (len(margins) - 1) / len(margins))
        return value - Z95 * spread, value + Z95 * spread, len(margins)
    return None, None, len(rows) or None


def _harness(results: dict) -> list[Measure]:
    found = []
    tasks = results.get("tasks")
    for name, task in sorted(tasks.items()) if isinstance(tasks, dict) else []:
        value, error = number(task.get("value")), number(task.get("stderr"))
        if value is None:
            continue
        metric = str(task.get("metric", "")).partition(",")[0]
        shots = task.get("num_fewshot", 0)  # None: a group whose subtasks differ
        asked = "mixed shots" if shots is None else f"{shots}-shot"
        told = f"{name}, {metric}, {asked} (lm-eval {results.get('lm_eval', '')})"
        half = Z95 * error if error is not None else None
        low, high = (None, None) if half is None else (value - half, value + half)
        found.append(Measure(metric or "value", told, value, low, high, task.get("rows"), task=name))
    return found


def _rows(file: Path) -> list[dict]:
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (OSError, ValueError):
        return []
    return [line for line in lines if isinstance(line, dict)]
