"""What report.json holds, field by field: the figures of each model's row, and of the run. None: not measured, or not
finite."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from spin_core.analysis.statistics import Interval


class Estimate(TypedDict):
    """A figure with its interval, and the rows that both are over."""

    value: float
    low: float | None
    high: float | None
    rows: int | None


class RateChange(Estimate):
    """A rate's change since the start on the rows of both; some became right (gained) and some wrong (lost)."""

    gained: int | None
    lost: int | None


class Delta(TypedDict):
    """Changes since the start."""

    greedy: RateChange | None
    sampled: RateChange | None
    nll: float | None
    nll_interval: NotRequired[Estimate | None]


class Opponents(TypedDict):
    """Held-out pairs, against the previous model and (`_start`) θ_0; `identical`: share of equal greedy answers."""

    real: float | None
    generated: float | None
    loss: float | None
    margin: Estimate | None
    margin_start: Estimate | None
    accuracy: Estimate | None
    accuracy_start: Estimate | None
    identical: float | None


class AnswerStyle(TypedDict):
    """Of the answers drawn in one way, called `name`: mean tokens with their change since the start, their ratio to the
    real answers', and shares: right, never ended, empty, looping, repeated, distinct."""

    name: str
    tokens: float | None
    change: Estimate | None
    ratio: Estimate | None
    match: Estimate | None
    truncated: Estimate | None
    empty: Estimate | None
    loops: Estimate | None
    repetition: Estimate | None
    match_change: NotRequired[Estimate | None]
    repetition_change: NotRequired[Estimate | None]
    distinct_runs: Estimate | None
    distinct_1: float | None
    distinct_2: float | None


class Style(TypedDict):
    """Every kind of answers by its name in the metrics, and the same of the real answers."""

    real_tokens: float | None
    real_loops: float | None
    real_distinct: float | None
    answers: dict[str, AnswerStyle]


class HarnessTask(TypedDict):
    """A task of the harness as it reports it."""

    value: float | None
    stderr: float | None
    rows: float | None
    num_fewshot: float | None
    version: float | None
    metric: str
    higher_is_better: bool
    prompts: str
    revision: str


class HarnessFigures(TypedDict, total=False):
    """The tasks by name, and their plain mean; empty for a run without the harness."""

    lm_eval: str
    preset: str
    backend: str
    average: float | None
    tasks: dict[str, HarnessTask]


class Decision(TypedDict, total=False):
    """What the gate decided after a model's own iteration; `best` counts the run's models from its first. Empty where
    no gate decided. `evidence`: what held-out rows show of a collapse."""

    outcome: str
    reason: str
    metric: str
    best: int | None
    change: Estimate | None
    margin: Estimate | None
    alarms: list[str]
    evidence: str


class PairShares(TypedDict):
    """Shares of the answers generated for the training rows; `rows` counts them before any is dropped. `rejected`: rows
    beside them whose prompt was too long to be answered."""

    rows: int
    identical: float | None
    truncated: float | None
    empty: float | None
    rejected: NotRequired[int]


class SourceFigures(TypedDict):
    """Of one set of a mix: figures of its held-out rows, and of the answers generated for its training rows."""

    rows: int
    nll: Estimate | None
    greedy: Estimate | None
    sampled: Estimate | None
    margin: Estimate | None
    accuracy: Estimate | None
    pairs: PairShares | None


class TokenCounts(TypedDict):
    """Of the training pairs' tokens: whether the generated answers' ids are `sampled` or `of the text`; rows whose
    prompt was cut, whose answer the chat template makes another text of, and answers that were cut at max_length."""

    ids: str
    rows: int
    prompts_cut: int
    rewritten: int
    cut_real: int
    cut_generated: int


class ModelRow(TypedDict):
    """One model's figures. `pairs` and `quality`: of the pair set that it learnt from, as shares and as counted."""

    label: str
    kind: str
    iteration: int
    rows: int | None
    greedy: Estimate | None
    sampled: Estimate | None
    nll: float | None
    margin: float | None
    accuracy: float | None
    steps: int | None
    pairs: PairShares | None
    delta: Delta
    opponents: NotRequired[Opponents]
    style: NotRequired[Style]
    quality: NotRequired[dict[str, float]]
    sources: NotRequired[dict[str, SourceFigures]]
    tokens: NotRequired[TokenCounts]
    harness: NotRequired[HarnessFigures]
    decision: NotRequired[Decision]
    best: NotRequired[bool]


class RunDecision(TypedDict, total=False):
    """The last gate's outcome and reason, and the best model's label. Empty for a run without a gate."""

    outcome: str
    reason: str
    best: str | None


class Figures(TypedDict):
    """report.json."""

    name: str
    sentence: str
    decision: RunDecision
    rows: list[ModelRow]
    notes: list[str]
    decoders: NotRequired[str]


def estimate(value: float, interval: Interval | None) -> Estimate:
    """A figure as report.json has it, with the bounds of its interval where it has one."""
    if interval is None:
        return {"value": value, "low": None, "high": None, "rows": None}
    return {"value": value, "low": interval.low, "high": interval.high, "rows": interval.rows}
