"""What was measured of one model of a run on held-out rows and by the harness, with 95 % intervals: for its card.

Is not: the report's table, which compares models (`spin_core.analysis.summary`). Reads what evaluate and harness wrote;
a figure that is missing or not finite is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spin_core.analysis import statistics
from spin_core.analysis.format import escape_markdown
from spin_core.analysis.results import ModelResults, number, read_model
from spin_core.analysis.statistics import Z95

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
    """One figure. `metric` is its name in the artifact, `low` and `high` its 95 % interval (None: unknown)."""

    metric: str
    label: str
    value: float
    low: float | None = None
    high: float | None = None
    rows: int | None = None
    task: str = ""

    def line(self) -> str:
        """A row of the card's table."""
        interval = f"{self.low:.4g} to {self.high:.4g}" if self.low is not None else "–"
        return f"| {escape_markdown(self.label, 120)} | {self.value:.4g} | {interval} | {self.rows or '–'} |"

    def result(self, datasets: Sequence[str]) -> Any:
        """The figure as the hub's own metadata (`EvalResult`)."""
        from huggingface_hub import EvalResult

        held_out = datasets[0] if datasets else "held-out"
        return EvalResult(
            task_type="text-generation",
            dataset_type=self.task or held_out,
            dataset_name=self.task or "held-out rows",
            metric_type=self.metric,
            metric_name=self.label,
            metric_value=float(f"{self.value:.6g}"),
        )


def measures(run: RunFacts, k: int) -> list[Measure]:
    """What `run` measured of θ_k, in the order of a card. Raises BadInput for an artifact that is damaged."""
    steps = run.measured("evaluate", k), run.measured("harness", k)
    evaluate, harness = (run.store.tree(step.digest) if step else None for step in steps)
    model = read_model(f"θ_{k}", "iteration", k - 1, evaluate, None, None, harness)
    figures = []
    for name, label in {**RATES, **MEANS, **PLAIN}.items():
        value = model.metrics.get(name)
        if value is not None:
            figures.append(Measure(name, label, value, *interval(name, value, model)))
    return figures + _harness(model.harness)


def interval(name: str, value: float, model: ModelResults) -> tuple[float | None, float | None, int | None]:
    """(low, high, rows) of a rate or a mean over the model's held-out rows; no bounds for other figures."""
    margins, seen = [*model.column("margin").values()], None
    if name.startswith("exact_match/"):
        if not (judged := len(model.column(f"{name.partition('/')[2]}_match"))):
            return None, None, None
        seen = statistics.rate(min(max(value, 0.0), 1.0), judged)
    elif name == "nll/real":
        nll, tokens = model.column("nll"), model.column("tokens")
        keys = [key for key in nll if tokens.get(key)]
        seen = statistics.mean([nll[key] for key in keys], [tokens[key] for key in keys])
    elif name == "spin/accuracy" and margins:
        seen = statistics.rate(min(max(value, 0.0), 1.0), len(margins))
    elif name == "spin/margin":
        seen = statistics.mean(margins)
    return (seen.low, seen.high, seen.rows) if seen else (None, None, len(model.answers) or None)


def _harness(results: dict) -> list[Measure]:
    measured = []
    tasks = results.get("tasks")
    for name, task in sorted(tasks.items()) if isinstance(tasks, dict) else []:
        value, error = number(task.get("value")), number(task.get("stderr"))
        if value is None:
            continue
        metric = str(task.get("metric", "")).partition(",")[0]
        shots = task.get("num_fewshot", 0)  # None: a group whose subtasks differ
        shown = "mixed shots" if shots is None else f"{shots}-shot"
        label = f"{name}, {metric}, {shown} (lm-eval {results.get('lm_eval', '')})"
        low, high = (None, None) if error is None else (value - Z95 * error, value + Z95 * error)
        measured.append(Measure(metric or "value", label, value, low, high, task.get("rows"), task=name))
    return measured
