"""What a run may be judged by (`gate.metric`), by its name in metrics.json: `harness`, `nll/real`, and of each kind of
answer (greedy, sampled, t0.3, deployed) `exact_match/KIND` and `repetition/KIND`.

Is not: the decision (stages/gate.py), nor the figures themselves (evaluate measures them).
"""

from __future__ import annotations

from typing import Any

from spin_core.analysis.decoders import DEPLOYED, GREEDY, SAMPLED
from spin_core.analysis.format import bounds, percent, share_bounds, show
from spin_core.analysis.results import ModelResults
from spin_core.analysis.rows import Estimate, ModelRow

HARNESS, NLL = "harness", "nll/real"
ORDER = (HARNESS, f"exact_match/{GREEDY}", f"exact_match/{SAMPLED}", NLL)
"""What `auto` takes, the first that every model was measured by; the order of headlines behind the gate's own."""
ENDS = {"match": "exact_match", "repetition": "repetition"}  # end of a field of rows.jsonl, behind the kind → figure


def is_less_better(metric: str | None) -> bool:
    """Whether a model is better where the figure is lower: NLL and repetition."""
    return metric == NLL or bool(metric and metric.startswith("repetition/"))


def kind_of(metric: str) -> str:
    """`t0.3` of `repetition/t0.3`; empty for one that is of no answers."""
    figure, _, kind = metric.partition("/")
    return kind if figure in ENDS.values() else ""


def values(model: ModelResults) -> dict[str, dict[str, float]]:
    """Metric → held-out row → its value, of which more is better; without the harness, whose items are no such rows."""
    nll, tokens = model.column("nll"), model.column("tokens")
    mean = sum(tokens.values()) / len(tokens) if tokens else 1.0
    # By tokens, as the metric of this name: long answers count more.
    made = {NLL: {key: -value * tokens.get(key, mean) / mean for key, value in nll.items()}}
    for field in sorted({name for row in model.answers.values() for name in row}):
        kind, _, end = field.rpartition("_")
        if kind and end in ENDS:
            column, metric = model.column(field), f"{ENDS[end]}/{kind}"
            made[metric] = {key: -one for key, one in column.items()} if is_less_better(metric) else column
    return made


def name(metric: str) -> str:
    """In a sentence: `exact match (greedy)`, `the share of their 4-grams that answers at temperature 0.3 repeat`."""
    if metric == HARNESS:
        return "the harness's average"
    if metric == NLL:
        return "the NLL of real answers"
    kind = kind_of(metric)
    if metric.startswith("exact_match/"):
        return f"exact match ({kind if kind in (GREEDY, SAMPLED, DEPLOYED) else f'temperature {kind[1:]}'})"
    return f"the share of their 4-grams that {answers(kind)} repeat"


def answers(kind: str) -> str:
    """`greedy answers`, `answers at temperature 0.3`, `answers as deployed`."""
    if kind in (GREEDY, DEPLOYED):
        return {GREEDY: "greedy answers", DEPLOYED: "answers as deployed"}[kind]
    return f"answers at temperature {'1' if kind == SAMPLED else kind[1:]}"


def column(metric: str) -> str:
    """The head of its column where the tables of models have none of it; else empty."""
    kind = kind_of(metric)
    if not kind or metric in ORDER:
        return ""
    how = {GREEDY: "", SAMPLED: " at T = 1", DEPLOYED: " as deployed"}.get(kind, f" at T = {kind[1:]}")
    return f"{'EM' if metric.startswith('exact_match/') else 'repetition'}{how}"


def is_share(metric: str) -> bool:
    """Whether a figure is shown in per cent; also of those that no run is judged by."""
    return metric.startswith(("truncated/", "loops/", "repetition/"))


def shown(metric: str, value: float | None) -> str:
    """A figure of the metric as people read it."""
    return percent(value) if is_share(metric) else show(value)


def between(metric: str, low: float, high: float) -> str:
    """The bounds of a figure as people read them, in the unit of `shown`."""
    return share_bounds(low, high) if is_share(metric) else bounds(low, high)


def moved(metric: str, *values: float) -> str:
    """A change of the metric, or the bounds of one, as people read it: of a share in percentage points."""
    if is_share(metric):
        return f"{' to '.join(show(100 * value, 1, signed=True) for value in values)} points"
    return " to ".join(show(value, signed=True) for value in values)


def measured(row: ModelRow, metric: str) -> Any:
    """A row's figure with its interval (rows.Estimate) or as a number, None where it was not measured. A harness
    average over tasks of which less is better in some says nothing: None."""
    if metric == HARNESS:
        known: Any = row.get("harness") or {}
        tasks = known.get("tasks") or {}
        return known["average"] if tasks and all(task["higher_is_better"] for task in tasks.values()) else None
    if metric == NLL:
        return row["nll"]
    kind = kind_of(metric)
    style = row["style"]["answers"].get(kind) if "style" in row else None
    if metric.startswith("repetition/"):
        return style["repetition"] if style else None
    own: Any = row.get(kind) if kind in (GREEDY, SAMPLED) else None
    return own or (style["match"] if style else None)


def change(row: ModelRow, metric: str) -> Estimate | None:
    """Its change since the start on the rows of both; None where that is not known, as for the harness."""
    delta, kind = row["delta"], kind_of(metric)
    if metric == NLL:
        return delta.get("nll_interval")
    style = row["style"]["answers"].get(kind) if "style" in row else None
    if metric.startswith("repetition/"):
        return style.get("repetition_change") if style else None
    own = delta["greedy"] if kind == GREEDY else delta["sampled"] if kind == SAMPLED else None
    return own or (style.get("match_change") if style else None)
