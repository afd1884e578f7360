"""The figures of one model for report.json: rates and means with intervals, changes since the start, pair quality,
harness tasks, the gate's decision.

Is not: metrics (evaluate and harness compute them) nor a decision (the gate makes it). Every text from an artifact is
cut here, so that report.json and what is made of it stay small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from spin_core.analysis import statistics
from spin_core.analysis.by_source import FIGURES, by_source
from spin_core.analysis.decoders import kinds, name_of
from spin_core.analysis.format import plain, short
from spin_core.analysis.results import ModelResults, number, paired
from spin_core.analysis.rows import (
    AnswerStyle,
    Decision,
    Estimate,
    HarnessFigures,
    HarnessTask,
    ModelRow,
    Opponents,
    PairShares,
    RateChange,
    SourceFigures,
    Style,
    TokenCounts,
    estimate,
)

TASKS = 200  # of a harness run that are shown; MMLU alone is 57
SETS = 50  # of a mix that are shown
REASON = 600
QUALITY = (
    "rows", "pairs", "prompts", "not_picked", "no_wrong_answer", "not_verified", "rejected", "identical_to_real",
    "truncated", "empty", "duplicate_answers", "real_characters_mean", "generated_characters_mean",
    "generated_tokens_mean",
)  # fmt: skip


def model_row(model: ModelResults, start: ModelResults | None) -> ModelRow:
    """The figures of one model; None, or an empty mapping, where there is nothing to show."""
    metrics = model.metrics
    before = start if start is not model else None
    nll = metrics.get("nll/real")
    part = model.quality.get("train")  # the training rows' part of quality.json
    part = part if isinstance(part, dict) else {}
    quality = {name: value for name in QUALITY if (value := number(part.get(name))) is not None}
    row: ModelRow = {
        "label": short(model.label),
        "kind": model.kind,
        "iteration": model.iteration,
        "rows": int(metrics["rows"]) if "rows" in metrics else None,
        "greedy": _rate(model, "greedy"),
        "sampled": _rate(model, "sampled"),
        "nll": nll,
        "margin": metrics.get("spin/margin"),
        "accuracy": metrics.get("spin/accuracy"),
        "steps": len(model.steps) or None,
        "pairs": _pair_shares(quality),
        "delta": {"greedy": None, "sampled": None, "nll": None},
        "opponents": _opponents(model),
        "style": _style(model, before),
        "quality": quality,
        "harness": _harness(model.harness),
        "decision": _decision(model.decision),
    }
    if tokens := _tokens(model.scores):
        row["tokens"] = tokens
    if sources := _sources(model, part):
        row["sources"] = sources
    if before is not None:
        old = before.metrics.get("nll/real")
        row["delta"] = {
            "greedy": _rate_change(before, model, "greedy"),
            "sampled": _rate_change(before, model, "sampled"),
            "nll": None if nll is None or old is None else nll - old,
            "nll_interval": nll_change(before, model),
        }
    return row


def mean(values: Sequence[float]) -> Estimate | None:
    """A mean with its interval, which one value has not; None without values."""
    if len(values) == 1:
        return {**estimate(values[0], None), "rows": 1}
    interval = statistics.mean(values)
    return estimate(interval.value, interval) if interval else None


def nll_change(before: ModelResults, after: ModelResults) -> Estimate | None:
    """Change of the NLL per token on the rows of both: rows weigh as their tokens do, as in `nll/real`."""
    old, new, tokens = before.column("nll"), after.column("nll"), after.column("tokens")
    keys = [key for key in new if key in old and tokens.get(key)]
    interval = statistics.mean([new[key] - old[key] for key in keys], [tokens[key] for key in keys])
    return estimate(interval.value, interval) if interval else None


def _rate(model: ModelResults, kind: str) -> Estimate | None:
    value = model.metrics.get(f"exact_match/{kind}")
    if value is None:
        return None
    rows = len(model.column(f"{kind}_match")) or int(model.metrics.get("rows", 0))
    return estimate(value, statistics.rate(value, rows) if rows > 0 and 0 <= value <= 1 else None)


def _rate_change(start: ModelResults, model: ModelResults, kind: str) -> RateChange | None:
    before, after = start.metrics.get(f"exact_match/{kind}"), model.metrics.get(f"exact_match/{kind}")
    if before is None or after is None:
        return None
    change = statistics.rate_change(paired(start.column(f"{kind}_match"), model.column(f"{kind}_match")))
    interval, gained, lost = change or (None, None, None)
    return {**estimate(after - before, interval), "gained": gained, "lost": lost}


def _sources(model: ModelResults, quality: Mapping[str, Any]) -> dict[str, SourceFigures]:
    """The figures of each set of a mix, from rows.jsonl and quality.json."""
    measured, pairs = by_source(model.answers), quality.get("sources")
    answered = pairs if isinstance(pairs, dict) else {}
    made: dict[str, SourceFigures] = {}
    for name in sorted({*measured, *answered})[:SETS]:
        rows, figures = measured.get(name, (0, {}))
        nll, greedy, sampled, margin, accuracy = (figures.get(metric) for metric in FIGURES)
        part = answered.get(name)
        counts = {key: number(value) for key, value in part.items()} if isinstance(part, dict) else {}
        made[plain(name, 40)] = {
            "rows": rows, "nll": nll, "greedy": greedy, "sampled": sampled, "margin": margin, "accuracy": accuracy,
            "pairs": _pair_shares({key: value for key, value in counts.items() if value is not None}),
        }  # fmt: skip
    return made


def _tokens(scores: dict[str, Any]) -> TokenCounts | None:
    """What score noted of the training pairs' tokens."""
    part, cut = (scores.get(name, {}) for name in ("tokens", "cut"))
    of, sides = part.get("train"), cut.get("train")
    if not of or not sides:
        return None
    return {
        "ids": str(part.get("ids", "")), "rows": of["rows"], "prompts_cut": of["prompts_cut"],
        "rewritten": of["rewritten"], "cut_real": sides["real"] + of["cut_real"],
        "cut_generated": sides["generated"] + of["cut_generated"],
    }  # fmt: skip


def _pair_shares(counts: Mapping[str, float]) -> PairShares | None:
    rows = counts.get("rows")
    if not rows:
        return None
    names = ("identical_to_real", "truncated", "empty")
    identical, truncated, empty = (counts[name] / rows if name in counts else None for name in names)
    shares: PairShares = {"rows": int(rows), "identical": identical, "truncated": truncated, "empty": empty}
    if rejected := counts.get("rejected"):  # only where there are any, and not among `rows`
        shares["rejected"] = int(rejected)
    return shares


def _opponents(model: ModelResults) -> Opponents:
    (margin, accuracy), (margin_start, accuracy_start) = _against(model, ""), _against(model, "_start")
    return {
        "real": model.metrics.get("rewards/real"),
        "generated": model.metrics.get("rewards/generated"),
        "loss": model.metrics.get("spin/loss"),
        "margin": margin,
        "margin_start": margin_start,
        "accuracy": accuracy,
        "accuracy_start": accuracy_start,
        "identical": number(model.decision.get("identical_to_previous")),
    }


def _against(model: ModelResults, end: str) -> tuple[Estimate | None, Estimate | None]:
    """Margin and accuracy, with the intervals of their rows."""
    values = [*model.column(f"margin{end}").values()]
    margin, accuracy = (model.metrics.get(f"spin/{name}{end}") for name in ("margin", "accuracy"))
    rate = statistics.rate(accuracy, len(values)) if values and accuracy is not None and 0 <= accuracy <= 1 else None
    return (
        None if margin is None else {**(mean(values) or estimate(margin, None)), "value": margin},
        None if accuracy is None else estimate(accuracy, rate),
    )


def _style(model: ModelResults, start: ModelResults | None) -> Style:
    """How the held-out answers look, by the way they were drawn; lengths in tokens, with their change since the
    start."""
    real = mean([*model.column("tokens").values()])
    return {
        "real_tokens": real and real["value"],
        "real_loops": model.metrics.get("loops/real"),
        "real_distinct": model.metrics.get("distinct_runs/real"),
        "answers": {kind: _answer_style(model, start, kind) for kind in kinds([*model.metrics, *_fields(model)])},
    }


def _fields(model: ModelResults) -> list[str]:
    return [*next(iter(model.answers.values()), {})]


def _answer_style(model: ModelResults, start: ModelResults | None, kind: str) -> AnswerStyle:
    name = f"{kind}_tokens"
    moved = _both(start, model, name) if start else []
    return {
        "name": plain(name_of(kind, model.metrics), 60),
        "tokens": model.metrics.get(f"length/{kind}_tokens"),
        "change": mean([new - old for old, new in moved]),
        "ratio": _ratio(model, kind),
        "match": _rate(model, kind),
        "truncated": _share(model, kind, "truncated", "cut"),
        "empty": _share(model, kind, "empty", "empty"),
        "loops": _share(model, kind, "loops", "loops"),
        "repetition": _mean_of(model, f"repetition/{kind}", f"{kind}_repetition"),
        "match_change": _rate_change(start, model, kind) if start else None,
        "repetition_change": mean([new - old for old, new in _both(start, model, f"{kind}_repetition")])
        if start
        else None,
        "distinct_runs": _mean_of(model, f"distinct_runs/{kind}", f"{kind}_distinct", f"{kind}_runs"),
        "distinct_1": model.metrics.get(f"distinct_1/{kind}"),
        "distinct_2": model.metrics.get(f"distinct_2/{kind}"),
    }


def _both(start: ModelResults, model: ModelResults, name: str) -> list[tuple[float, float]]:
    return paired(start.column(name), model.column(name))


def _share(model: ModelResults, kind: str, metric: str, field: str) -> Estimate | None:
    """A share of the answers, with Wilson's interval."""
    value, rows = model.metrics.get(f"{metric}/{kind}"), len(model.column(f"{kind}_{field}"))
    if value is None:
        return None
    return estimate(value, statistics.rate(value, rows) if rows and 0 <= value <= 1 else None)


def _mean_of(model: ModelResults, metric: str, field: str, weight: str = "") -> Estimate | None:
    """A metric with the interval of the rows' figures, which weigh as `weight` says."""
    value, rows, weights = model.metrics.get(metric), model.column(field), model.column(weight)
    if value is None:
        return None
    keys = [key for key in rows if not weight or weights.get(key)]
    interval = statistics.mean([rows[key] for key in keys], [weights[key] for key in keys] if weight else None)
    return estimate(value, interval)


def _ratio(model: ModelResults, kind: str) -> Estimate | None:
    """Tokens of the answers for one of the real ones: a ratio of two means over the same rows."""
    value = model.metrics.get(f"length/{kind}_ratio")
    if value is None:
        return None
    sides = paired(model.column("tokens"), model.column(f"{kind}_tokens"))
    off, real = statistics.mean([own - value * real for real, own in sides]), mean([real for real, _ in sides])
    if not off or not real or not real["value"]:
        return estimate(value, None)
    half = (off.high - off.low) / 2 / real["value"]
    return estimate(value, statistics.Interval(value, value - half, value + half, len(sides)))


def _harness(results: Mapping[str, Any]) -> HarnessFigures:
    tasks = results.get("tasks")
    if not isinstance(tasks, dict):
        return {}
    return {
        "lm_eval": plain(results.get("lm_eval") or "", 60),
        "preset": plain(results.get("preset") or "", 60),
        "backend": plain(results.get("backend") or "", 60),
        "average": number(results.get("average")),
        "tasks": {plain(name, 80): _task(tasks[name]) for name in sorted(tasks)[:TASKS]},
    }


def _task(raw: object) -> HarnessTask:
    task = raw if isinstance(raw, dict) else {}
    return {
        "value": number(task.get("value")),
        "stderr": number(task.get("stderr")),
        "rows": number(task.get("rows")),
        "num_fewshot": number(task.get("num_fewshot")),
        "version": number(task.get("version")),
        "metric": plain(task.get("metric") or "", 60),
        "higher_is_better": task.get("higher_is_better") is not False,
        "prompts": plain(task.get("prompts_sha256") or "", 64),
        "revision": plain((task.get("dataset") or {}).get("revision") or "", 40),
    }


def _decision(decision: Mapping[str, Any]) -> Decision:
    if not decision:
        return {}
    alarms, best = decision.get("alarms"), number(decision.get("best"))
    return {
        "outcome": plain(decision.get("outcome") or "", 40),
        "reason": plain(decision.get("reason") or "", REASON),
        "metric": plain(decision.get("metric") or "", 60),
        "best": None if best is None else int(best),
        "change": _read_estimate(decision.get("change")),
        "margin": _read_estimate(decision.get("margin")),
        "evidence": plain(decision.get("evidence") or "", 500),
        "alarms": [plain(alarm, 500) for alarm in alarms[:20]] if isinstance(alarms, list) else [],
    }


def _read_estimate(raw: object) -> Estimate | None:
    if not isinstance(raw, dict) or number(raw.get("value")) is None:
        return None
    return cast(Estimate, {name: number(raw.get(name)) for name in ("value", "low", "high", "rows")})
