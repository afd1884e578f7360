"""What a run shows, in one plain sentence made from the table's figures, and the notes that a reader must not miss.

Is not: a significance test of SPIN. It states when a change is within what chance gives on these held-out rows (its
paired 95 % interval holds zero), and a fall as plainly as a rise. One run with one seed says nothing about other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from spin_core.analysis import gate_metric
from spin_core.analysis.format import percent, plural
from spin_core.analysis.results import ModelResults, is_finite, number
from spin_core.analysis.rows import ModelRow, RunDecision
from spin_core.analysis.statistics import Z95
from spin_core.analysis.training_alarms import alarms
from spin_core.config.finetune import Finetune

WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
FAULTS = {
    "identical": "are the real answer, and such pairs teach nothing: a higher generate.temperature gives fewer, or "
    "rows that the model was not trained on",
    "truncated": "were cut at generate.max_new_tokens: raise it",
    "empty": "are empty: `spinloop data` shows the prompts as the model sees them; its chat template should be the one "
    "that it was trained with",
}
"""Figure of a pair set → what a note says of it, where at least FAULTY of the answers are so."""
FAULTY = 0.1  # from there on a fault of generation (a cap too low, another template) is likelier than the data
METRICS = ("exact_match/greedy", "exact_match/sampled", "nll/real")  # what evaluate measures of every model


def headlines(rows: Sequence[ModelRow]) -> list[str]:
    """What a run is summed up by, in order: the gate's metric, then those that it takes by itself."""
    own = judged_by(rows)
    return [own] * bool(own) + [metric for metric in gate_metric.ORDER if metric != own]


def judged_by(rows: Sequence[ModelRow]) -> str:
    """The metric that the run's last decision went by; empty without a gate or a metric."""
    made = [row["decision"] for row in rows if row["kind"] != "control" and row.get("decision")]
    return (made[-1].get("metric") or "") if made else ""


def figure(row: ModelRow, metric: str) -> str:
    """`value_of` as people read it."""
    return gate_metric.shown(metric, value_of(row, metric))


def verdict(rows: list[ModelRow]) -> str:
    """The sentence at the top of the report: of the first of `headlines` that the run measured θ_0, the last model, the
    best, and the controls. `decided` has marked the gate's best before."""
    start = next((row for row in rows if row["kind"] == "start"), None)
    done = sorted((row for row in rows if row["kind"] == "iteration"), key=lambda row: row["iteration"])
    for metric in headlines(rows):
        name = _name(metric)
        seen = [row for row in done if value_of(row, metric) is not None]
        if start is None or value_of(start, metric) is None:
            continue
        if seen:
            return _change(start, seen, metric) + _controls(rows, done, seen[-1], metric) + "."
        if not done:
            figures = f"{figure(start, metric)} ({_what(start, metric)})"
            return f"{name} of the start is {figures}; no iteration has been run."
    for metric in headlines(rows):
        name = _name(metric)
        for row in [row for row in done if value_of(row, metric) is not None][-1:]:
            figures = f"{figure(row, metric)} after {row['label']} ({_what(row, metric)})"
            return f"{name} is {figures}; it was not measured on the start, so there is nothing to compare it with."
    return (
        "No held-out metric was measured on both the start and an iteration, "
        "so this run does not show whether the model became better."
    )


def best_of(decisions: Iterable[Mapping[str, Any] | None], count: int) -> int | None:
    """The k of a run's best model θ_k: by its last decision. None for a run without one, and where that names none of
    `count` models. `decisions`: in the order of the iterations, {} or None where no gate decided."""
    last: Mapping[str, Any] = next((made for made in reversed(list(decisions)) if made), {})
    k = number(last.get("best"))
    return int(k) if k is not None and 0 <= k < count else None


def decided(rows: list[ModelRow]) -> RunDecision:
    """The last gate's decision on the run: outcome, reason, and the label of the best model, whose row gets `best`.
    Empty for a run without a gate."""
    players = [row for row in rows if row["kind"] != "control"]
    made = [row for row in players if row.get("decision")]
    if not made:
        return {}
    last = made[-1]["decision"]
    k = best_of([last], len(players))
    if k is not None:
        players[k]["best"] = True
    return {"outcome": last["outcome"], "reason": last["reason"], "best": None if k is None else players[k]["label"]}


def notes(models: list[ModelResults], rows: list[ModelRow], trained: Callable[[int], Finetune]) -> list[str]:
    """Warnings in table order: losses that were not finite, alarms of the training and of the gate, models without
    metrics, pair sets that teach little. None stands there twice: the gate repeats those of the training. `trained`:
    the settings of an iteration's training."""
    pairs = zip(models, rows, strict=True)
    return [note for model, row in pairs for note in _notes_of(model, row, trained(model.iteration))]


def _notes_of(model: ModelResults, row: ModelRow, part: Finetune) -> list[str]:
    notes = []
    bad = [step for step in model.steps if not is_finite(step.get("loss"))]
    if bad:
        notes.append(
            f"the training loss was not finite in {len(bad):,} of {len(model.steps):,} steps, first at step "
            f"{bad[0].get('step')}: lower its lr, or set its precision to float32."
        )
    decision = row.get("decision") or {}
    evidence, own = decision.get("evidence"), decision.get("alarms", [])
    is_own = own and evidence == own[0]
    seen = " The alarm of the gate is below." if is_own else f" The gate: {evidence}." if evidence else ""
    notes += [alarm["text"] + seen for alarm in alarms(model.steps, len(model.steps), part)]
    for text in own:
        alarm = text.rstrip(".")
        if not any(alarm in f"{row['label']}: {note}" for note in notes):
            notes.append(f"{alarm}.")
    if all(value_of(row, metric) is None for metric in METRICS):
        notes.append("no held-out metric was measured: the section evaluate says what is.")
    if pairs := row["pairs"]:
        shares = {"identical": pairs["identical"], "truncated": pairs["truncated"], "empty": pairs["empty"]}
        notes += [
            f"{percent(share)} of the {pairs['rows']:,} generated answers it learnt from {said}."
            for name, said in FAULTS.items()
            if (share := shares[name]) is not None and share >= FAULTY
        ]
    return [f"{row['label']}: {note}" for note in notes]


def _name(metric: str) -> str:
    """At the beginning of a sentence, which says in brackets how the answers were drawn."""
    named = {"harness": "The harness's average", "nll/real": "The per-token NLL of held-out real answers"}
    if metric.startswith("exact_match/"):
        return "Exact match"
    text = named.get(metric) or gate_metric.name(metric)
    return text[0].upper() + text[1:]


def _change(start: ModelRow, seen: list[ModelRow], metric: str) -> str:
    last, rising = seen[-1], not gate_metric.is_less_better(metric)
    before, after = value_of(start, metric), value_of(last, metric)
    way = "; higher is better" if metric == "harness" else "" if rising else "; lower is better"
    scope = f"over {_count(len(seen))} ({_what(start, metric)}{way})"
    text = f"{_name(metric)} {_verb(start, last, metric)} {scope}"
    delta = gate_metric.change(last, metric)
    if metric == "harness" and (half := _harness_error(start, last)) is not None and abs(after - before) <= half:
        interval = gate_metric.moved(metric, after - before - half, after - before + half)
        text += f", a change within the tasks' standard errors (95 % interval {interval}, items not paired)"
    low, high = (delta["low"], delta["high"]) if delta else (None, None)
    if low is not None and high is not None and low <= 0 <= high and before != after:
        interval = gate_metric.moved(metric, low, high)
        text += f", a change within what chance gives on these rows (95 % interval {interval})"
    best = _best(seen, metric)
    if figure(best, metric) != figure(last, metric) and _best([start, best], metric) is best:
        text += f"; it was best after {best['label']}, at {figure(best, metric)}"
    kept = next((row for row in (start, *seen) if row.get("best")), None)
    if kept and kept is not last and kept is not best:
        text += f"; the gate's best is {kept['label']}, at {figure(kept, metric)}"
    return text


def _controls(rows: list[ModelRow], done: list[ModelRow], last: ModelRow, metric: str) -> str:
    """The fair comparison (a control with as many optimiser steps), and the best control where it is not worse than
    SPIN."""
    ran = [row["steps"] for row in done if row["iteration"] <= last["iteration"]]
    total = sum(filter(None, ran)) if all(ran) else None
    measured = [row for row in rows if row["kind"] == "control" and value_of(row, metric) is not None]
    if not measured:
        return ""
    best = _best(measured, metric)
    fair = next((row for row in measured if total and row["steps"] == total), None)
    text = f"; the same number of SFT steps ({total:,}) reached {figure(fair, metric)}" if fair else ""
    if fair is None or (best is not fair and _best([best, last], metric) is best):
        text += f"; the control “{best['label']}” reached {figure(best, metric)}"
        if best["steps"] and total and best["steps"] != total:
            text += f" in {best['steps']:,} steps against SPIN's {total:,}"
    return text


def _best(rows: list[ModelRow], metric: str) -> ModelRow:
    """The row with the best figure, of equal ones the first."""
    return (min if gate_metric.is_less_better(metric) else max)(rows, key=lambda row: value_of(row, metric))


def _verb(start: ModelRow, last: ModelRow, metric: str) -> str:
    before, after = figure(start, metric), figure(last, metric)
    if before == after:
        return f"stayed at {after}"
    return f"{'rose' if value_of(last, metric) > value_of(start, metric) else 'fell'} from {before} to {after}"


def _harness_error(*rows: ModelRow) -> float | None:
    """Half of the 95 % interval of the difference of two harness averages by the tasks' standard errors; None where a
    task has none. Wider than one over paired items, which the table's rows do not have."""
    parts: list[float] = []
    for row in rows:
        tasks = row["harness"]["tasks"].values()
        known = [error for task in tasks if (error := task["stderr"]) is not None]
        if len(known) < len(tasks):
            return None
        parts += [error / len(tasks) for error in known]
    return Z95 * math.hypot(*parts)


def _what(row: ModelRow, metric: str) -> str:
    if metric == "harness":
        return plural(len(row["harness"]["tasks"]), "task")
    measured = gate_metric.measured(row, metric)
    rows = (isinstance(measured, dict) and measured["rows"]) or row["rows"]
    kind = gate_metric.kind_of(metric) if metric.startswith("exact_match/") else ""
    how = {"": "", "greedy": "greedy", "sampled": "sampled at temperature 1", "deployed": "as deployed"}.get(
        kind, f"sampled at temperature {kind[1:]}"
    )
    count = "" if rows is None else f"{rows:,} held-out {'prompts' if metric != 'nll/real' else 'rows'}"
    return ", ".join(part for part in (how, count) if part) or "held-out rows"


def _count(iterations: int) -> str:
    word = WORDS[iterations] if iterations < len(WORDS) else str(iterations)
    return f"{word} iteration{'' if iterations == 1 else 's'}"


def value_of(row: ModelRow, metric: str) -> Any:  # a float, or None where it was not measured
    """A row's figure of a metric that a gate may go by."""
    known = gate_metric.measured(row, metric)
    return known["value"] if isinstance(known, dict) else known
