"""The runs of a sweep side by side: what each variant's last model did on the held-out rows, over rows and over seeds,
and which variant is clearly better than which, and than θ_0.

Two kinds of chance. The interval over rows is of the held-out rows: for each row the mean over the variant's seeds. The
interval over seeds (Student's t) is of the training: for each seed the mean over rows. Many comparisons make a lucky
winner: k variants and θ_0 make k(k + 1)/2 differences, so each is tested at the gate's confidence c raised to
1 − (1 − c) / (k(k + 1)/2) (Bonferroni): all hold together with confidence c. One is clearly better than another where
the gate's own test of the paired rows says so at that confidence, and every seed agrees. As in the gate a variant that
raised an alarm is not the best, whatever its figure.

Is not: a search, nor a claim about other data: all variants are judged by the same held-out rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spin_core.analysis import gate_metric
from spin_core.analysis.format import plural
from spin_core.analysis.results import ModelResults, paired
from spin_core.analysis.statistics import Interval, bootstrap, mean, student_t

RESAMPLES, SEED = 20_000, 0
"""At 1 − .05/66 (12 variants) fifteen of 20,000 resampled means lie outside."""


@dataclass(frozen=True)
class Training:
    """One run of a variant: its seed, its last model, the metric that its gate went by, the label of the model that the
    gate kept, and the first of the alarms that it raised."""

    run: str
    seed: int
    model: ModelResults
    metric: str
    kept: str = ""
    alarm: str = ""


@dataclass(frozen=True)
class Variant:
    """`changes`: setting → value as text; `failed`: of each run without a report its sentence."""

    label: str
    changes: Mapping[str, str]
    trainings: list[Training]
    failed: list[str] = field(default_factory=list)

    @property
    def alarms(self) -> list[str]:
        """Of each seed that raised one."""
        return [run.alarm for run in self.trainings if run.alarm]


START = -1
"""In place of a variant's number: θ_0."""


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
    θ_0's figure. `against`: the best beside each other variant, and θ_0. `confidence`: of all differences together;
    `corrected`: of each."""

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
        """The variants that the best one is clearly better than; with START where θ_0 is one of them."""
        return [one.second for one in self.against if one.first == self.best and one.is_clear]

    def apart(self) -> int:
        """Variants that share no held-out row with the best one, so that they are not compared."""
        compared = {number for one in self.against for number in (one.first, one.second)} | {self.best}
        return len(self.figures.get(self.metric, {}).keys() - compared)

    def label(self, number: int) -> str:
        """Of a variant, or of θ_0."""
        return "θ_0" if number == START else self.variants[number].label


def compare(
    variants: Sequence[Variant], start: ModelResults | None, confidence: float, alarmed_best: bool = False
) -> Swept:
    """`start`: θ_0 of the runs; `confidence`, `alarmed_best`: of the gate. Variants without a run have no figure."""
    there = {i: one for i, one in enumerate(variants) if one.trainings}
    rows = {i: [gate_metric.values(run.model) for run in one.trainings] for i, one in there.items()}
    metrics = _metrics(there, rows)
    began = gate_metric.values(start) if start else {}
    compared = len(there) + bool(began)
    pairs = max(1, compared * (compared - 1) // 2)
    corrected = 1 - (1 - confidence) / pairs
    figures = {name: {i: _figure(name, [made[name] for made in of]) for i, of in rows.items()} for name in metrics}
    started = {name: _figure(name, [began[name]]).value for name in metrics if began.get(name)}
    if not metrics:
        return Swept(list(variants), {}, {}, None, [], [], confidence, corrected)
    name = metrics[0]
    sign = -1 if gate_metric.is_less_better(name) else 1
    value = {i: sign * figure.value for i, figure in figures[name].items()}
    columns = {i: _by_seed(one, [made[name] for made in rows[i]]) for i, one in there.items()}
    if name in started:
        value[START] = sign * started[name]
        columns[START] = {seed: began[name] for of in columns.values() for seed in of}
    sound = [i for i, one in there.items() if alarmed_best or not one.alarms]
    best = max(sound, key=value.__getitem__, default=None)
    against = []
    for other in value:
        if best is None or other == best:
            continue
        first, second = (best, other) if value[best] >= value[other] else (other, best)
        change = _against(first, second, columns[first], columns[second], corrected)
        against += [change] if change else []
    return Swept(list(variants), figures, started, best, against, _effects(there, figures[name]), confidence, corrected)


def _metrics(
    there: Mapping[int, Variant], rows: Mapping[int, Sequence[Mapping[str, Mapping[str, float]]]]
) -> list[str]:
    """What every run was measured by, the gate's own first."""
    every = [set(made) for of in rows.values() for made in of]
    known = set.intersection(*every) if every else set()
    judged = [run.metric for one in there.values() for run in one.trainings]
    order = [*judged[:1], *gate_metric.ORDER, *sorted(known)]
    return [
        name
        for name in dict.fromkeys(order)
        if name in known and all(made[name] for of in rows.values() for made in of)
    ]


def _by_seed(one: Variant, columns: Sequence[Mapping[str, float]]) -> dict[int, Mapping[str, float]]:
    return {run.seed: column for run, column in zip(one.trainings, columns, strict=True)}


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
    first: int, second: int, new: Mapping[int, Mapping[str, float]], old: Mapping[int, Mapping[str, float]],
    confidence: float,
) -> Against | None:  # fmt: skip
    """Of two variants, each seed → row → value; None where they share no row."""
    rows = paired(_over_seeds([*old.values()]), _over_seeds([*new.values()]))
    change = bootstrap([after - before for before, after in rows], confidence, RESAMPLES, SEED)
    if change is None:
        return None
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
    """The best variant by its metric, what it is clearly better than, and how that is corrected."""
    if not made.figures:
        return "No figure was measured on all variants, so they cannot be compared."
    name = gate_metric.name(made.metric)
    if made.best is None:
        return f"Every variant raised an alarm, so none is the best; the figures by {name} are below."
    figures = made.figures[made.metric]
    text = f"{made.label(made.best)} is the best by {name}, {gate_metric.shown(made.metric, figures[made.best].value)}"
    if made.metric in made.start:
        clear = "clearly better than" if START in made.beaten() else "not clearly better than"
        text += f", {clear} θ_0 ({gate_metric.shown(made.metric, made.start[made.metric])})"
    others = len(figures) - 1
    if others and not made.apart() and len({figure.value for figure in figures.values()}) == 1:
        return (
            f"All variants have the same figure by {name}, {gate_metric.shown(made.metric, figures[made.best].value)}."
        )
    if others:
        beaten = len([one for one in made.beaten() if one != START])
        some = (
            f"all {others:,}" if beaten == others else f"{beaten:,} of {others:,}" if beaten else f"none of {others:,}"
        )
        text += f", and clearly better than {some} other variant{'s' * (others > 1)}"
    alarmed = sum(bool(one.alarms) for one in made.variants)
    text += f"; {alarmed:,} raised an alarm" if alarmed else ""
    if apart := made.apart():
        text += f"; {plural(apart, 'variant')} with other held-out rows cannot be compared with it"
    count = (compared := len(figures) + (made.metric in made.start)) * (compared - 1) // 2
    each, together = f"{100 * made.corrected:.2f} %", f"{100 * made.confidence:.0f} %"
    how = f"each of {count:,} differences at {each}, so that all hold at {together}"
    seeds = max((one.seeds for one in made.against), default=1)
    agree = f"and {seeds:,} of {seeds:,} seeds" if seeds > 1 else "one seed: how far trainings vary is not known"
    return f"{text} ({how}{' ' if seeds > 1 else '; '}{agree})." if made.against else f"{text}."


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
                "runs": [
                    {"run": run.run, "seed": run.seed, "model": run.model.label, "kept": run.kept, "alarm": run.alarm}
                    for run in one.trainings
                ],
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
