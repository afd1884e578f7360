"""Go on, stop, or keep an earlier model: the decision after an iteration, with its evidence.

Compares the newest model with the best so far, row by row on the held-out rows of both (paired bootstrap), and looks
for a saturated accuracy and for a collapse. Is not: a rollback (nothing is thrown away, `best` is a mark) nor a test
over seeds. It reads what evaluate and harness measured and computes no metric of its own. Alarms of the training
(`spin_core.analysis.training_alarms`) are notes: sound iterations raise them, too, so here held-out rows must show it.

inputs   `evaluate`: artifacts of θ_0 … θ_{t+1}, in this order · `harness`: those of the same models, if there are any
outputs  `decision.json`: outcome, reason, best, previous_best, models, metric, higher_is_better, go_on, change, margin,
         identical_to_previous, alarms, evidence (what held-out rows show of a collapse)
outcome  `alarm`: signs of a collapse in real answers or in those of any decoder (`spin_core.analysis.collapse`), or a
         saturated accuracy ·
         `keep best`: clearly worse than the best so far · `stop`: the fixed point, where the player no longer
         distinguishes real answers from its opponent's (paper, theorem 5.2) and the metric does not move ·
         `continue`: all else
best     moves to a model that is clearly better than the best before it, so equal models do not take turns, and shows
         no sign of a collapse, whatever the metric says (`gate.alarmed_best`)
assumes  every model was evaluated on the same held-out rows; rows that one has and the other has not are left out
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import Field

from spin_core.analysis import gate_metric
from spin_core.analysis.collapse import measured_on_both, named, signs
from spin_core.analysis.format import show
from spin_core.analysis.results import ModelResults, paired, read_model, weights
from spin_core.analysis.statistics import Interval, bootstrap
from spin_core.config.base import Section
from spin_core.config.gate import Gate
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job

NAME = "gate"
VERSION = 5
"""2: exact bounds where fewer than 21 rows are paired.
3: signs of a collapse are read from the answers of every decoder.
4: the sentence names the settings of the run's own loss.
5: the sentence says what to do about too few rows, and has shares in per cent."""

NO_MARGIN = 0.1
"""Mean margin, in β nats, that is none: it takes the loss from 0.693 to 0.645. The whole interval must lie below it: a
wide one that holds zero (−0.3 to 1.0 of 80 pairs was seen in a run that then learnt) only says that rows are few."""
PINNED, SATURATED = 0.99, 0.1
"""Held-out accuracy that is 1 for all purposes (a few pairs of equal answers never become right), and the loss below
which it is pinned there: pairs then weigh less than a tenth in the gradient. A first iteration on a weak model is soon
right about every pair, at a loss of 0.3, and still learns."""


class Config(Section):
    """What the decision depends on besides the artifacts."""

    gate: Gate
    seed: int
    first: int = Field(0, ge=0, json_schema_extra={"omit_default": True})
    """The first of the models is θ of this number; `best` and `previous_best` count from it."""


@dataclass(frozen=True)
class Player:
    """A model and what a comparison needs: its results, and the value of each row by metric (more is better)."""

    model: ModelResults
    values: Mapping[str, Mapping[str, float]]


def console_note(summary: dict[str, Any]) -> str:
    """What the console shows below the finished step."""
    return str(summary.get("reason", ""))


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write decision.json; give outcome, best and reason. Raises BadInput where `gate.metric` was not measured."""
    evaluated, harness = _listed(inputs, "evaluate"), _listed(inputs, "harness")
    decision = decide(
        [_player(i, config.first, tree, harness[i] if harness else None) for i, tree in enumerate(evaluated)], config
    )
    text = json.dumps(decision, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (job.out / "decision.json").write_text(text + "\n", encoding="utf-8")
    return {name: decision[name] for name in ("outcome", "best", "reason")}


def decide(players: list[Player], config: Config) -> dict[str, Any]:
    """The decision after the last of `players`."""
    how, metric = config.gate, _metric(players, config.gate)
    best, change = 0, None
    collapse: dict[int, list[str]] = {}
    for i in range(1, len(players)):
        previous, change = best, _change(players[best], players[i], metric, config)
        is_better = change is not None and change.low > 0
        if is_better or i == len(players) - 1:
            collapse[i] = signs(players[i].model, players[0].model, how, config.seed)
        if is_better and (how.alarmed_best or not collapse[i]):
            best = i
    now, before = players[-1], players[-2]
    margins = [row["margin"] for row in now.model.answers.values() if row.get("margin") is not None]
    margin = _interval(margins, config)
    alarms = [*collapse[len(players) - 1], *filter(None, [_saturated(now, how)])]
    evidence = _evidence(now, players[0], collapse[len(players) - 1], how)
    is_worse = change is not None and change.high < 0
    none = margin is not None and margin.low > -NO_MARGIN and margin.high < NO_MARGIN
    is_fixed = none and change is not None and change.low <= 0 <= change.high
    outcome = "alarm" if alarms else "keep best" if is_worse else "stop" if is_fixed else "continue"
    policies = [(alarms, how.alarm), (is_worse, how.worse), (is_fixed, how.fixed_point)]
    reason = _describe(change, players[previous], now, metric, how, players[best].model.label)
    if is_fixed and margin:
        reason = (
            f"fixed point: real answers are no longer preferred to {before.model.label}'s on {margin.rows:,} held-out "
            f"pairs (margin {show(margin.value)}, {100 * how.confidence:g} % interval {show(margin.low)} to "
            f"{show(margin.high)}), and {reason}"
        )
    few = len(now.model.answers) < how.min_rows
    held = change is not None and change.low > 0 and best != len(players) - 1
    reason += ", as it shows signs of a collapse (gate.alarmed_best would allow it)" if held else ""
    reason = f"{now.model.label}: {reason}" + (f"; alarm: {alarms[0]}" if alarms else "" if few else f"; {evidence}")
    return {
        "outcome": outcome,
        "reason": reason + ("" if reason.endswith(".") else "."),
        "best": best,
        "previous_best": previous,
        "models": len(players),
        "metric": metric,
        "higher_is_better": not gate_metric.is_less_better(metric),
        "go_on": not any(holds and policy == "stop" for holds, policy in policies),
        "change": asdict(_own(change, metric)) if change else None,
        "margin": asdict(margin) if margin else None,
        "identical_to_previous": _identical(before.model, now.model),
        "alarms": alarms,
        "evidence": evidence,
    }


def _saturated(now: Player, how: Gate) -> str:
    accuracy, loss = now.model.metrics.get("spin/accuracy", 0.0), now.model.metrics.get("spin/loss", math.inf)
    if accuracy < PINNED or loss >= SATURATED or len(now.model.column("margin")) < how.min_rows:
        return ""
    return (
        f"held-out accuracy is saturated at {show(accuracy)} with a loss of {show(loss)}, so that further steps learn "
        "little and only push log-probs apart; train fewer epochs or lower finetune.lr"
    )


def _evidence(now: Player, start: Player, collapse: list[str], how: Gate) -> str:
    """What the held-out rows say of a collapse, in words."""
    rows = now.model.answers
    if collapse:
        return collapse[0]
    if len(rows) < how.min_rows:
        return f"{len(rows):,} held-out rows are too few to show a collapse (gate.min_rows {how.min_rows})"
    drawn = ", ".join(named(now.model, kind) for kind in measured_on_both(now.model, start.model))
    return f"held-out rows show no sign of a collapse{f' (answers drawn {drawn})' if drawn else ''}"


def _player(i: int, first: int, evaluate: Path, harness: Path | None) -> Player:
    model = read_model(f"θ_{first + i}", "iteration" if i else "start", first + i - 1, evaluate, None, None)
    values: dict[str, Mapping[str, float]] = {**gate_metric.values(model)}
    if harness:
        items = [json.loads(line) for line in (harness / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        tasks = json.loads((harness / "results.json").read_text(encoding="utf-8"))["tasks"]
        parts = {leaf: part for name, one in tasks.items() for leaf, part in one.get("subtasks", {name: one}).items()}
        weight = weights(tasks, Counter(item["task"] for item in items))
        # The same question only where prompts, metric and version are the same: a hub's data may have changed.
        question = {
            leaf: [part.get(name) for name in ("prompts_sha256", "metric", "version")] for leaf, part in parts.items()
        }
        values[gate_metric.HARNESS] = {
            f"{item['id']} {question[item['task']]}": float(item["value"]) * weight[item["task"]] for item in items
        }
    return Player(model, values)


def _metric(players: list[Player], how: Gate) -> str | None:
    known = [name for name in gate_metric.ORDER if all(player.values.get(name) for player in players)]
    if how.metric != "auto" and not players[0].values.get(how.metric):
        raise BadInput(
            f"gate.metric: {how.metric} was not measured on every model; measure it (sections evaluate, harness), or "
            f"take auto{''.join(f' or {name}' for name in known)}."
        )
    return how.metric if how.metric != "auto" else known[0] if known else None


def _change(old: Player, new: Player, metric: str | None, config: Config) -> Interval | None:
    """Of the metric, more is better; None where too few rows are paired."""
    return _interval([after - before for before, after in _pairs(old, new, metric)], config)


def _interval(values: list[float], config: Config) -> Interval | None:
    """Of their mean; None where they are too few to say anything."""
    how = config.gate
    return bootstrap(values, how.confidence, how.resamples, config.seed) if len(values) >= how.min_rows else None


def _describe(change: Interval | None, old: Player, new: Player, metric: str | None, how: Gate, best: str) -> str:
    """The metric of both on the rows that both have, and what follows."""
    pairs = _pairs(old, new, metric)
    if change is None or metric is None:
        few = (
            f"{len(pairs)} held-out rows are too few to compare models by: hold out {how.min_rows} (gate.min_rows) or "
            "more, by dataset.test_fraction, test_path or test_limit"
        )
        none = "no held-out metric was measured: the sections evaluate and harness say what is"
        return f"{few if metric else none}; {best} stays best"
    sign = -1 if gate_metric.is_less_better(metric) else 1
    before, after = (sign * fmean(column) for column in zip(*pairs, strict=True))
    own = _own(change, metric)
    was, now = gate_metric.shown(metric, before), gate_metric.shown(metric, after)
    verb = "stayed at" if was == now else f"went from {was} to"
    word = "clearly better" if change.low > 0 else "clearly worse" if change.high < 0 else "within what chance gives"
    return (
        f"{gate_metric.name(metric)} {verb} {now} against {old.model.label} on {change.rows:,} rows, {word} "
        f"({100 * how.confidence:g} % interval {gate_metric.moved(metric, own.low, own.high)}), {best} "
        f"{'is' if new.model.label == best else 'stays'} best"
    )


def _own(change: Interval, metric: str | None) -> Interval:
    """The change in the metric's own direction, where less may be better."""
    return (
        Interval(-change.value, -change.high, -change.low, change.rows)
        if gate_metric.is_less_better(metric)
        else change
    )


def _identical(old: ModelResults, new: ModelResults) -> float | None:
    """Share of the held-out rows that both models answer alike, greedily."""
    texts = [
        (old.answers[key].get("greedy"), row.get("greedy")) for key, row in new.answers.items() if key in old.answers
    ]
    known = [(a, b) for a, b in texts if a is not None and b is not None]
    return fmean(a == b for a, b in known) if known else None


def _pairs(old: Player, new: Player, metric: str | None) -> list[tuple[float, float]]:
    return paired(old.values.get(metric, {}), new.values.get(metric, {})) if metric else []


def _listed(inputs: Inputs, name: str) -> list[Path]:
    given = inputs.get(name, [])
    return given if isinstance(given, list) else [given]
