"""The runs of a sweep side by side: what each variant's best model did on the held-out rows, over rows and over seeds,
and which variant is clearly better than which.

Two kinds of chance. The interval over rows is of the held-out rows: for each row the mean over the variant's seeds. The
interval over seeds (Student's t) is of the training: for each seed the mean over rows. Many comparisons make a lucky
winner: with k variants the best of k(k − 1)/2 differences is looked at, so each is tested at the gate's confidence
raised to 1 − (1 − c) / (k(k − 1)/2) (Bonferroni): all hold together with confidence c. A variant is clearly better than
another where the gate's own test of the paired rows says so at that confidence, and every seed agrees.

Is not: a search, nor a claim about other data: all variants are judged by the same held-out rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from spin_core.analysis import gate_metric
from spin_core.analysis.results import ModelResults, paired
from spin_core.analysis.statistics import Interval, bootstrap, mean, student_t

RESAMPLES, SEED = 20_000, 0
"""At 1 − .05/66 (12 variants) fifteen of 20,000 resampled means lie outside."""


@dataclass(frozen=True)
class Training:
    """One run of a variant: its seed, the model that its gate kept (or its last), and the metric its gate went by."""

    run: str
    seed: int
    model: ModelResults
    metric: str


@dataclass(frozen=True)
class Variant:
    """`changes`: setting → value as text; `failed`: of each run without a report its sentence."""

    label: str
    changes: Mapping[str, str]
    trainings: list[Training]
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Figure:
    """A metric of a variant. `rows`: over held-out rows, 95 %; `seeds`: 95 % bounds over seeds, None below two;
    `each`: by seed, in their order."""

    value: float
    rows: Interval | None
    seeds: tuple[float, float] | None
    each: list[float]


@dataclass(frozen=True)
class Against:
    """The first variant less the second, more is better: over paired rows at the corrected confidence, and on how many
    of the seeds that both have the difference is of the same sign."""

    first: int
    second: int
    change: Interval
    agree: int
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether the first is clearly better than the second."""
        return self.change.low > 0 and self.agree == self.seeds


@dataclass(frozen=True)
class Effect:
    """Of a setting's value: the mean of the figure over the variants that have it."""

    setting: str
    value: str
    figure: float
    variants: int


@dataclass(frozen=True)
class Swept:
    """`figures`: metric → variant's number → Figure; the first metric is the one that `best` goes by. `start`: metric →
    θ_0's figure. `confidence`: of all comparisons together; `corrected`: of each."""

    variants: list[Variant]
    figures: dict[str, dict[int, Figure]]
    start: dict[str, float]
    best: int | None
    against: list[Against]
    effects: list[Effect]
    confidence: float
    corrected: float

    @property
    def metric(self) -> str:
        return next(iter(self.figures), "")

    def beaten(self) -> list[int]:
        """The variants that the best one is clearly better than."""
        return [one.second for one in self.against if one.first == self.best and one.is_clear]


def compare(variants: Sequence[Variant], start: ModelResults | None, confidence: float) -> Swept:
    """`start`: θ_0 of the runs; `confidence`: of the gate. Variants without a run have no figure."""
    there = {i: one for i, one in enumerate(variants) if one.trainings}
    rows = {i: [gate_metric.values(run.model) for run in one.trainings] for i, one in there.items()}
    shared = [set.intersection(*(set(made) for made in of)) for of in rows.values()]
    known = set.intersection(*shared) if shared else set()
    judged = [run.metric for one in there.values() for run in one.trainings if run.metric in known]
    order = [*judged[:1], *(name for name in (*gate_metric.ORDER, *sorted(known)) if name in known)]
    metrics = [name for name in dict.fromkeys(order) if all(made[name] for of in rows.values() for made in of)]
    figures = {name: {i: _figure(name, [made[name] for made in of]) for i, of in rows.items()} for name in metrics}
    pairs = max(1, len(there) * (len(there) - 1) // 2)
    corrected = 1 - (1 - confidence) / pairs
    best, against = None, []
    if metrics:
        name = metrics[0]
        sign = -1 if gate_metric.is_less_better(name) else 1
        best = max(there, key=lambda i: sign * figures[name][i].value)
        columns = {i: [made[name] for made in of] for i, of in rows.items()}
        for i, j in combinations(there, 2):
            first, second = (i, j) if sign * figures[name][i].value >= sign * figures[name][j].value else (j, i)
            made = _against(first, second, there, columns, corrected)
            against += [made] if made else []
    values = gate_metric.values(start) if start else {}
    began = {name: _figure(name, [values[name]]).value for name in metrics if values.get(name)}
    effects = _effects(there, figures[metrics[0]]) if metrics else []
    return Swept(list(variants), figures, began, best, against, effects, confidence, corrected)


def _figure(metric: str, seeds: Sequence[Mapping[str, float]]) -> Figure:
    """Of one metric, as people read it: where less is better, the values of `gate_metric.values` are negative."""
    sign = -1 if gate_metric.is_less_better(metric) else 1
    each = [sign * math.fsum(column.values()) / len(column) for column in seeds]
    values = [sign * value for value in _over_seeds(seeds).values()]
    bounds = None
    if len(each) > 1:
        centre = math.fsum(each) / len(each)
        spread = math.sqrt(math.fsum((one - centre) ** 2 for one in each) / (len(each) - 1) / len(each))
        half = student_t(0.95, len(each) - 1) * spread
        bounds = centre - half, centre + half
    return Figure(math.fsum(each) / len(each), mean(values), bounds, each)


def _over_seeds(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Row → its mean over seeds, of the rows that all have."""
    shared = set.intersection(*(set(column) for column in seeds))
    return {row: math.fsum(column[row] for column in seeds) / len(seeds) for row in sorted(shared)}


def _against(
    first: int, second: int, variants: Mapping[int, Variant], columns: Mapping[int, Sequence[Mapping[str, float]]],
    confidence: float,
) -> Against | None:  # fmt: skip
    """None where the two share no row."""
    rows = paired(_over_seeds(columns[second]), _over_seeds(columns[first]))
    change = bootstrap([after - before for before, after in rows], confidence, RESAMPLES, SEED)
    if change is None:
        return None
    new, old = (
        {run.seed: column for run, column in zip(variants[i].trainings, columns[i], strict=True)}
        for i in (first, second)
    )
    both = sorted(new.keys() & old.keys())
    gains = [math.fsum(after - before for before, after in paired(old[seed], new[seed])) for seed in both]
    return Against(first, second, change, sum(gain > 0 for gain in gains), len(both))


def _effects(variants: Mapping[int, Variant], figures: Mapping[int, Figure]) -> list[Effect]:
    """Of each value of each setting; nothing where there is one setting only, whose variants say it."""
    names = list(dict.fromkeys(name for one in variants.values() for name in one.changes))
    if len(names) < 2:
        return []
    effects = []
    for name in names:
        for value in dict.fromkeys(one.changes[name] for one in variants.values()):
            own = [figures[i].value for i, one in variants.items() if one.changes[name] == value]
            effects.append(Effect(name, value, math.fsum(own) / len(own), len(own)))
    return effects


def verdict(made: Swept) -> str:
    """One sentence: the best variant by its metric, what it is clearly better than, and how that is corrected."""
    if made.best is None:
        return "No variant was measured by a metric that all have."
    from spin_core.analysis.format import show

    metric, figure = made.metric, made.figures[made.metric][made.best]
    others = len(made.figures[metric]) - 1
    beaten = len(made.beaten())
    text = f"{made.variants[made.best].label} has the best figure by {gate_metric.name(metric)}, {show(figure.value)}"
    if metric in made.start:
        text += f" (θ_0 {show(made.start[metric])})"
    if not others:
        return text + "."
    pairs = others * (others + 1) // 2
    how = f"each of {pairs:,} pairs tested at {made.corrected:.2%}" if pairs > 1 else f"tested at {made.corrected:.0%}"
    seeds = max(one.seeds for one in made.against) if made.against else 1
    agree = f" and {seeds:,} of {seeds:,} seeds" if seeds > 1 else "; one seed, so how far training varies is not known"
    if not beaten:
        return f"{text}; it is not clearly better than any of the {others:,} others ({how}{agree})."
    rest = f"all {others:,} others" if beaten == others else f"{beaten:,} of {others:,} others"
    return f"{text}; it is clearly better than {rest} ({how}{agree})."


def as_json(made: Swept, runs: Mapping[str, Any]) -> dict[str, Any]:
    """The sweep for other programs; `runs`: what is kept of it beside the figures."""
    return {
        **runs,
        "verdict": verdict(made),
        "metric": made.metric,
        "best": None if made.best is None else made.variants[made.best].label,
        "confidence": made.confidence,
        "confidence_of_each_pair": made.corrected,
        "start": made.start,
        "variants": [
            {
                "label": one.label,
                "settings": dict(one.changes),
                "runs": [{"run": run.run, "seed": run.seed, "model": run.model.label} for run in one.trainings],
                "failed": one.failed,
                "figures": {
                    name: {
                        "value": of[i].value,
                        "rows": None if (interval := of[i].rows) is None else [interval.low, interval.high],
                        "seeds": None if (bounds := of[i].seeds) is None else list(bounds),
                        "each": of[i].each,
                    }
                    for name, of in made.figures.items()
                    if i in of
                },
                "clearly_worse_than_best": i in made.beaten(),
            }
            for i, one in enumerate(made.variants)
        ],
    }
