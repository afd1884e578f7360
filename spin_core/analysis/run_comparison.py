"""Two runs side by side: which settings differ, what the models of both did on the held-out rows of both, at what cost.

Is not: a judgement over seeds. Two runs are two draws; the intervals (paired bootstrap over rows) show how far chance
in the held-out rows alone moves a difference.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_core.analysis.collapse import measured_on_both
from spin_core.analysis.costs import Costs
from spin_core.analysis.decoders import name_of
from spin_core.analysis.format import bounds, plain, plural, short, show
from spin_core.analysis.profile_diff import Difference, differences
from spin_core.analysis.results import ModelResults, paired, weights
from spin_core.analysis.statistics import bootstrap
from spin_core.errors import BadInput

LONG = {  # names of metrics in a sentence
    "harness average": "the harness's average",
    "EM greedy": "exact match (greedy)",
    "EM sampled": "exact match (sampled)",
    "NLL": "the NLL of real answers",
}
CONFIDENCE, RESAMPLES, SEED = 0.95, 4000, 0
SAME = {"prompts_sha256": "prompts", "metric": "metric", "version": "task version"}
"""Fields of a task that both runs must share for its items to be paired, as a reader calls them."""
NAMED = 6  # tasks that a note names; MMLU alone has 57


@dataclass(frozen=True)
class HarnessItems:
    """What the harness measured of a model: `tasks` of its results.json, and values of items by task (of a group by
    subtask) and id."""

    tasks: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    values: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def leaves(self) -> dict[str, dict[str, Any]]:
        """The tasks that items belong to: a group's subtasks in place of the group."""
        return {
            leaf: entry
            for name, task in self.tasks.items()
            for leaf, entry in task.get("subtasks", {name: task}).items()
        }


@dataclass(frozen=True)
class Side:
    """One of the two runs. `items`: what the harness measured of each model, by label."""

    name: str
    profile: dict[str, Any]
    models: list[ModelResults]
    best: str  # label of the gate's best model, else of the last iteration
    costs: Costs
    items: dict[str, HarnessItems] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A metric of two models on the `rows` that both have: values, B − A with its interval, and whether more is better
    (0: neither is)."""

    name: str
    here: float
    there: float
    value: float
    low: float
    high: float
    rows: int
    rising: int

    @property
    def better(self) -> int:
        """1: B is clearly better, −1: A is, 0: within what chance gives, or neither."""
        return self.rising * (1 if self.low > 0 else -1 if self.high < 0 else 0)


@dataclass(frozen=True)
class ComparedModels:
    """Two models, and the metrics that both have; `unlike`: harness tasks that are left out, as their questions or
    marks are not the same, with what differs."""

    here: str
    there: str
    changes: list[Change]
    unlike: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """`pairs`: the best models of both runs first, then the last ones, then models of the same place in their runs.
    `note`: what was left out of the pairing, or empty."""

    here: Side
    there: Side
    settings: list[Difference]
    pairs: list[ComparedModels]
    verdict: str
    note: str = ""


def compare(here: Side, there: Side) -> Comparison:
    """Raises BadInput where the best models of both share no held-out row and no harness item."""
    settings = differences(here.profile, there.profile)
    sides = [{model.label: model for model in side.models} for side in (here, there)]
    last = [next((m.label for m in reversed(side.models) if m.kind != "control"), "") for side in (here, there)]
    wanted = [(here.best, there.best)]
    wanted += [(last[0], last[1])] if all(last) and last[0] != last[1] else []
    wanted += [(label, label) for label in sides[0] if label in sides[1]]
    pairs = [_pair(here, there, sides[0][old], sides[1][new]) for old, new in dict.fromkeys(wanted)]
    if not pairs[0].changes:
        counts = [len(side[run.best].answers) for side, run in zip(sides, (here, there), strict=True)]
        raise BadInput(
            f"{here.name} and {there.name}: their models share no held-out rows ({counts[0]:,} and {counts[1]:,}, none "
            "with the same id); compare runs on the same dataset, seed and held-out split."
            + (f" {_note(pairs[:1])}" if pairs[0].unlike else "")
        )
    return Comparison(here, there, settings, pairs, _verdict(here, there, pairs, settings), _note(pairs))


def _pair(here: Side, there: Side, old: ModelResults, new: ModelResults) -> ComparedModels:
    items = here.items.get(old.label, HarnessItems()), there.items.get(new.label, HarnessItems())
    unlike = _unlike(*items)

    def both(name: str) -> list[tuple[float, float]]:
        return paired(old.column(name), new.column(name))

    changes = [
        _change("harness average", 1, _weighted_items(*items, unlike)),
        _change("EM greedy", 1, both("greedy_match")),
        _change("EM sampled", 1, both("sampled_match")),
        _change("NLL", -1, _weighted_nll(old, new)),
        _change("length", 0, both("greedy_tokens")),
        _change("repetition", -1, both("greedy_repetition")),
        *(
            _change(f"{what}, {name_of(kind, new.metrics)}", -1, both(f"{kind}_{field}"))
            for kind in measured_on_both(new, old)
            for field, what in (("cut", "never ends"), ("loops", "loops"))
        ),
    ]
    return ComparedModels(short(old.label), short(new.label), [one for one in changes if one is not None], unlike)


def _change(name: str, rising: int, pairs: Sequence[tuple[float, float]]) -> Change | None:
    interval = bootstrap([new - old for old, new in pairs], CONFIDENCE, RESAMPLES, SEED)
    if interval is None:
        return None
    before, after = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
    return Change(name, before, after, interval.value, interval.low, interval.high, interval.rows, rising)


def _weighted_items(old: HarnessItems, new: HarnessItems, unlike: Mapping[str, str]) -> list[tuple[float, float]]:
    """The items of both, weighted so that their mean is the mean of the tasks' values, as the gate and leaderboards
    take it: a group as the first run takes it."""
    keys = sorted(key for key in old.values.keys() & new.values.keys() if key[0] not in unlike)
    part = weights(old.tasks, Counter(task for task, _ in keys))
    return [(old.values[key] * part[key[0]], new.values[key] * part[key[0]]) for key in keys]


def _unlike(old: HarnessItems, new: HarnessItems) -> dict[str, str]:
    """Tasks of both runs whose items are not the same questions, or are not marked alike, and what differs."""
    here, there = old.leaves(), new.leaves()
    unlike = {
        task: [label for name, label in SAME.items() if here[task].get(name) != there[task].get(name)]
        for task in sorted(here.keys() & there.keys())
    }
    return {task: ", ".join(labels) for task, labels in unlike.items() if labels}


def _note(pairs: Sequence[ComparedModels]) -> str:
    """One sentence about the tasks that are left out of any pair."""
    unlike = {task: differing for pair in pairs for task, differing in pair.unlike.items()}
    if not unlike:
        return ""
    named = [f"{plain(task, 80)} ({differing})" for task, differing in sorted(unlike.items())]
    more = f" and {len(named) - NAMED:,} more" if len(named) > NAMED else ""
    return (
        f"The harness average leaves out {plural(len(named), 'task')} that the two runs did not ask alike: "
        f"{', '.join(named[:NAMED])}{more}."
    )


def _weighted_nll(old: ModelResults, new: ModelResults) -> list[tuple[float, float]]:
    """NLLs of the shared rows, weighted so that their mean is the mean over tokens, where all rows have a count."""
    before, after, tokens = old.column("nll"), new.column("nll"), new.column("tokens")
    keys = sorted(before.keys() & after.keys())
    total = math.fsum(tokens.get(key, 0.0) for key in keys)
    share = len(keys) / total if total and all(key in tokens for key in keys) else None
    part = {key: 1.0 if share is None else tokens[key] * share for key in keys}
    return [(before[key] * part[key], after[key] * part[key]) for key in keys]


def harness_items(tree: Path | None) -> HarnessItems:
    """The tasks and items of a harness artifact. Raises BadInput for one that is damaged."""
    if tree is None:
        return HarnessItems()
    try:
        tasks = json.loads((tree / "results.json").read_text(encoding="utf-8"))["tasks"]
        rows = [json.loads(line) for line in (tree / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        items = HarnessItems(tasks, {(row["task"], str(row["id"])): float(row["value"]) for row in rows})
        known = weights(tasks, Counter(task for task, _ in items.values))
        items.leaves()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{tree}: not what harness wrote ({error}); run the profile again.") from None
    strange = next((task for task, _ in items.values if task not in known), None)
    if strange is not None:
        raise BadInput(
            f"{tree}: its rows name a task {plain(strange, 80)} that it has no result of; run the profile again."
        )
    return items


def _verdict(here: Side, there: Side, pairs: Sequence[ComparedModels], settings: Sequence[Difference]) -> str:
    """One sentence about the best models and, where those are the same one, about the next pair; the first setting."""
    best = pairs[0]
    if any((change.low, change.high) != (0, 0) for change in best.changes):
        return _judged(here, there, best) + _first(settings) + "."
    rows = best.changes[0].rows
    text = f"The best models of both, {best.here} and {best.there}, do the same on all of the {rows:,} rows "
    text += "that both were asked"
    for pair in pairs[1:2]:
        text += f"; {_judged(here, there, pair)}" if pair.changes else ""
    return text + _first(settings) + "."


def _judged(here: Side, there: Side, pair: ComparedModels) -> str:
    """The first metric of both models, and another that clearly says the opposite."""
    judged = [change for change in pair.changes if change.rising]
    first = judged[0] if judged else pair.changes[0]
    who, other = f"{pair.there} of {plain(there.name, 80)}", f"{pair.here} of {plain(here.name, 80)}"
    word = {1: "is clearly better than", -1: "is clearly worse than", 0: "is not clearly better or worse than"}
    text = (
        f"{who} {word[first.better]} {other}: {LONG.get(first.name, first.name)} {show(first.there)} against "
        f"{show(first.here)} on the same {first.rows:,} rows, {show(first.value, signed=True)} (95 % interval "
        f"{bounds(first.low, first.high, signed=True)})"
    )
    for change in judged[1:]:
        if change.better and change.better != first.better:
            side = "better" if change.better > 0 else "worse"
            return f"{text}; by {LONG.get(change.name, change.name)} it is clearly {side}"
    return text


def _first(settings: Sequence[Difference]) -> str:
    """What differs first, as the end of a sentence."""
    if not settings:
        return "; no setting differs"
    one, count = settings[0], len(settings)
    more = f"the first of {count:,} settings that differ" if count > 1 else "the only setting that differs"
    return f"; {one.setting} was {one.here} and is {one.there}, {more}"
