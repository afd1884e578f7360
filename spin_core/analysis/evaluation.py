"""The models of several runs, evaluated with one setting, side by side over time: figures with intervals, and what does
not go together.

Each figure is over its own run's held-out rows. Is not: a judgement. Which model of a run is best its gate decides; of
many models the highest is partly luck, and figures over other rows are not paired (`run_comparison` pairs two runs).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from spin_core.analysis import gate_metric, statistics
from spin_core.analysis.decoders import kinds
from spin_core.analysis.format import plural
from spin_core.analysis.profile_diff import differences
from spin_core.analysis.results import ModelResults
from spin_core.analysis.rows import Estimate, HarnessTask, ModelRow, estimate
from spin_core.analysis.summary import model_row

TASK = "harness/"  # begins the name of a benchmark task's figure
ORDER = (gate_metric.HARNESS, TASK, "exact_match/", gate_metric.NLL, "spin/accuracy", "spin/margin",
         "truncated/", "loops/", "repetition/", "length/")  # fmt: skip
"""Beginnings of the figures' names, in reading order."""
SAME = ("prompts", "metric", "version")  # of a task, for its figures to go together
SECTIONS = ("evaluate", "harness", "chat", "seed", "generate.engine")
"""Settings of a run that its models' figures depend on, beside model and rows."""
SETTABLE = ("evaluate", "harness")
State = Literal["cached", "measured", "left out", "failed"]


@dataclass(frozen=True)
class Measured:
    """A model of a run. `made`: when it was, None where nothing says so; `best`: of its run, by the gate; `state`: of
    all its steps together, `measured` where one was computed now; `lacks`: a sentence for each that was not."""

    run: str
    results: ModelResults
    made: datetime | None
    best: bool
    state: State
    lacks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Evaluated:
    """`figures`: of each model, in the order of `models`: name as in metrics.json (`harness/TASK` of a task) → figure;
    `metrics`: those that a model has, in reading order; `notes`: what does not go together, a sentence each."""

    models: list[Measured]
    figures: list[dict[str, Estimate]]
    metrics: list[str]
    notes: list[str]

    def count(self, state: State) -> int:
        """How many models are in this state."""
        return sum(one.state == state for one in self.models)


def evaluated(models: Sequence[Measured], profiles: dict[str, dict[str, Any]]) -> Evaluated:
    """`models`: of one run after the other; `profiles`: of each run, with what was set for this evaluation."""
    rows = [model_row(one.results, None) for one in models]
    figures = [_figures(row, one.results) for row, one in zip(rows, models, strict=True)]
    names = {name for of in figures for name in of}
    order = kinds(names)

    def place(name: str) -> tuple[int, int, str]:
        kind = name.rpartition("/")[2].removesuffix("_tokens")
        at = next(i for i, start in reversed([*enumerate(ORDER)]) if name.startswith(start))
        return at, order.index(kind) if kind in order else 0, name

    notes = [*_other_rows(models), *_other_settings(profiles), *_other_tasks(models, rows)]
    return Evaluated([*models], figures, sorted(names, key=place), notes)


def sentence(made: Evaluated) -> str:
    """How many models of how many runs, and what became of them."""
    runs = len({one.run for one in made.models})
    text = (
        f"{plural(len(made.models), 'model')} of {plural(runs, 'run')}: {made.count('cached'):,} cached, "
        f"{made.count('measured'):,} measured now, {made.count('left out'):,} left out"
    )
    return f"{text}, {failed:,} failed." if (failed := made.count("failed")) else f"{text}."


def as_json(made: Evaluated, facts: dict[str, Any]) -> dict[str, Any]:
    """For other programs; `facts`: what is kept beside the figures."""
    models = [
        {
            "run": one.run, "model": one.results.label, "kind": one.results.kind, "iteration": one.results.iteration,
            "made": one.made.isoformat() if one.made else None, "best": one.best, "state": one.state,
            "lacks": one.lacks, "rows": one.results.metrics.get("rows"), "figures": of,
        }
        for one, of in zip(made.models, made.figures, strict=True)
    ]  # fmt: skip
    return {**facts, "sentence": sentence(made), "notes": made.notes, "metrics": made.metrics, "models": models}


def heading(metric: str) -> str:
    """The head of a figure's column: `EM, greedy`, `never ends, T = 0.3`."""
    if metric.startswith(TASK):
        return metric.removeprefix(TASK)
    known = {gate_metric.HARNESS: "harness", gate_metric.NLL: "NLL", "spin/accuracy": "accuracy",
             "spin/margin": "margin"}  # fmt: skip
    if metric in known:
        return known[metric]
    figure, _, kind = metric.partition("/")
    kind = kind.removesuffix("_tokens")
    how = {"greedy": "greedy", "sampled": "T = 1", "deployed": "as deployed"}.get(kind, f"T = {kind[1:]}")
    return f"{ {'exact_match': 'EM', 'truncated': 'never ends', 'length': 'tokens'}.get(figure, figure) }, {how}"


def is_less_better(metric: str, made: Evaluated) -> bool:
    """Whether a model is better where the figure is lower."""
    if metric.startswith(TASK):
        tasks = (one.results.harness.get("tasks", {}).get(metric.removeprefix(TASK)) for one in made.models)
        return any(isinstance(task, dict) and task.get("higher_is_better") is False for task in tasks)
    return metric == gate_metric.NLL or gate_metric.is_share(metric)


def _figures(row: ModelRow, model: ModelResults) -> dict[str, Estimate]:
    """All figures of a model that are there."""
    tasks = row.get("harness", {}).get("tasks", {})
    average = gate_metric.measured(row, gate_metric.HARNESS)
    made: dict[str, Estimate | None] = {f"{TASK}{name}": _task(task) for name, task in tasks.items()}
    made[gate_metric.HARNESS] = None if average is None else estimate(average, None)
    nll, tokens = model.column("nll"), model.column("tokens")
    keys = [key for key in nll if tokens.get(key)]
    interval = statistics.mean([nll[key] for key in keys], [tokens[key] for key in keys]) if keys else None
    made[gate_metric.NLL] = None if row["nll"] is None else {**estimate(row["nll"], interval), "value": row["nll"]}
    against = row["opponents"]
    made |= {"spin/accuracy": against["accuracy"], "spin/margin": against["margin"]}
    for kind, of in row["style"]["answers"].items():
        made |= {f"exact_match/{kind}": of["match"], f"truncated/{kind}": of["truncated"]}
        made |= {f"loops/{kind}": of["loops"], f"repetition/{kind}": of["repetition"]}
        long = [*model.column(f"{kind}_tokens").values()]
        made[f"length/{kind}_tokens"] = None if of["tokens"] is None else estimate(of["tokens"], statistics.mean(long))
    return {name: figure for name, figure in made.items() if figure is not None}


def _task(task: HarnessTask) -> Estimate | None:
    """With the 95 % interval of the standard error that lm_eval gives."""
    value, error = task["value"], task["stderr"]
    if value is None:
        return None
    half = None if error is None else statistics.Z95 * error
    rows = None if task["rows"] is None else int(task["rows"])
    low, high = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": low, "high": high, "rows": rows}


def _other_rows(models: Sequence[Measured]) -> list[str]:
    """Where not all runs have the same held-out rows."""
    rows: dict[str, set[str]] = {}
    for one in models:
        if one.results.answers:
            rows.setdefault(one.run, set(one.results.answers))
    if len({frozenset(of) for of in rows.values()}) < 2:
        return []
    sizes = sorted({len(of) for of in rows.values()})
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    shared = len(set.intersection(*rows.values()))
    return [
        f"Not all runs have the same held-out rows ({span}, of which {shared:,} are in all {len(rows):,}): each figure "
        "is over its own run's. `spinloop report --compare RUN_A RUN_B` pairs those that two runs share."
    ]


def _other_settings(profiles: dict[str, dict[str, Any]]) -> list[str]:
    """Settings of the evaluation in which runs differ from the first."""
    if not profiles:
        return []
    (first, own), *others = profiles.items()
    own_settings = Counter(
        int(t)
        for profile in profiles.values()
        for t, sections in (profile.get("overrides") or {}).items()
        if sections.get("evaluate")
    )
    kept = [
        f"θ_{t + 1} of {plural(count, 'run')} keeps settings of its iteration (overrides.{t}.evaluate), so its figures "
        "do not go together with the others'."
        for t, count in sorted(own_settings.items())
    ]
    differing: Counter[str] = Counter()
    for profile in (profile for _, profile in others):
        for one in differences(own, profile):
            if one.setting.startswith(SECTIONS):
                differing[one.setting] += 1
    return kept + [
        f"{name} is another in {plural(count, 'run')} than in {first}, so their figures do not go together"
        + (f"; give `--set {name}=…` for all." if name.startswith(SETTABLE) else ".")
        for name, count in differing.items()
    ]


def _other_tasks(models: Sequence[Measured], rows: Sequence[ModelRow]) -> list[str]:
    """Benchmark tasks that were not asked alike."""
    asked: dict[str, set[tuple[Any, ...]]] = {}
    for row in rows:
        for name, task in row.get("harness", {}).get("tasks", {}).items():
            asked.setdefault(name, set()).add(tuple(task.get(part) for part in SAME))
    return [
        f"{name}: not all models were asked with the same prompts, metric and version of the task, so its figures do "
        "not go together."
        for name, ways in asked.items()
        if len(ways) > 1
    ]
