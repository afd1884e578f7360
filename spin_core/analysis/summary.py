"""The figures of one table line beyond rates and shares: against the opponents, style of the answers, harness tasks,
the gate's decision, each with its interval where there are rows to take one from.

Is not: metrics (evaluate and harness compute them) nor a decision (the gate makes it). Every text from a tree
is cut here, so that report.json and what is made of it stay small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from spin_core.analysis.figures import Z95, Model, number, plain, table_row, wilson

KINDS = ("greedy", "sampled")
TASKS = 200  # of a harness run that are shown; MMLU alone is 57
REASON = 600


def measured(model: Model, start: Model | None) -> dict:
    """`figures.table_row` and what this module knows; None, or an empty mapping, where there is nothing to show."""
    row = table_row(model, start)
    if start is not None and start is not model:
        row["delta"]["nll_interval"] = nll_change(start, model)
    return row | {
        "opponents": _opponents(model),
        "style": _style(model, start),
        "quality": _quality(model.quality),
        "harness": _harness(model.harness),
        "decision": _decision(model.decision),
    }


def mean(values: Sequence[float]) -> dict | None:
    """{value, low, high, rows} of a mean with its 95 % normal interval; None without values."""
    if not values:
        return None
    count, value = len(values), math.fsum(values) / len(values)
    if count == 1:
        return {"value": value, "low": None, "high": None, "rows": 1}
    half = Z95 * math.sqrt(math.fsum((x - value) ** 2 for x in values) / (count - 1) / count)
    return {"value": value, "low": value - half, "high": value + half, "rows": count}


def both(before: Model, after: Model, name: str) -> list[tuple[float, float]]:
    """The figure `name` of every held-out row that both models have; true counts 1."""
    pairs = []
    for key, row in after.answers.items():
        old, new = (_figure(one.get(name)) for one in (before.answers.get(key, {}), row))
        if old is not None and new is not None:
            pairs.append((old, new))
    return pairs


def nll_change(before: Model, after: Model) -> dict | None:
    """Change of the NLL per token with its 95 % paired interval: rows weigh as their tokens do, as in `nll/real`."""
    rows = []
    for key, row in after.answers.items():
        old, new, tokens = (
            number(one) for one in (before.answers.get(key, {}).get("nll"), row.get("nll"), row.get("tokens"))
        )
        if old is not None and new is not None and tokens:
            rows.append((new - old, tokens))
    if len(rows) < 2:
        return None
    total = math.fsum(tokens for _, tokens in rows)
    value = math.fsum(d * tokens for d, tokens in rows) / total
    squares = math.fsum((tokens * (d - value)) ** 2 for d, tokens in rows)
    half = Z95 * math.sqrt(squares * len(rows) / (len(rows) - 1)) / total
    return {"value": value, "low": value - half, "high": value + half, "rows": len(rows)}


def _opponents(model: Model) -> dict:
    """Margins and accuracies against the previous model and θ_0; `identical`: share of equal greedy answers."""
    found: dict = {name: model.metrics.get(f"rewards/{name}") for name in ("real", "generated")}
    found["loss"] = model.metrics.get("spin/loss")
    for end in ("", "_start"):
        values = [value for row in model.answers.values() if (value := number(row.get(f"margin{end}"))) is not None]
        found[f"margin{end}"] = _with(model.metrics.get(f"spin/margin{end}"), mean(values))
        accuracy = model.metrics.get(f"spin/accuracy{end}")
        seen = None
        if accuracy is not None and values and 0 <= accuracy <= 1:
            low, high = wilson(accuracy, len(values))
            seen = {"low": low, "high": high, "rows": len(values)}
        found[f"accuracy{end}"] = _with(accuracy, seen)
    found["identical"] = number(model.decision.get("identical_to_previous"))
    return found


def _style(model: Model, start: Model | None) -> dict:
    """How the held-out answers look, greedy and sampled; lengths in tokens, with their change since the start."""
    real = mean([value for row in model.answers.values() if (value := number(row.get("tokens"))) is not None])
    found: dict = {"real_tokens": real and real["value"]}
    for kind in KINDS:
        names = {"tokens": f"length/{kind}_tokens"} | {
            name: f"{name}/{kind}" for name in ("repetition", "distinct_1", "distinct_2", "truncated")
        }
        found[kind] = {name: model.metrics.get(metric) for name, metric in names.items()}
        moved = both(start, model, f"{kind}_tokens") if start is not None and start is not model else []
        found[kind]["change"] = mean([new - old for old, new in moved])
    return found


def _quality(quality: Mapping) -> dict:
    """Of the pair set that a model learnt from, as gather counted it before dropping any."""
    part = quality.get("train")
    part = part if isinstance(part, dict) else {}
    names = (
        "rows", "pairs", "rejected", "identical_to_real", "truncated", "empty", "duplicate_answers",
        "real_characters_mean", "generated_characters_mean", "generated_tokens_mean",
    )  # fmt: skip
    return {name: value for name in names if (value := number(part.get(name))) is not None}


def _harness(results: Mapping) -> dict:
    tasks = results.get("tasks")
    if not isinstance(tasks, dict):
        return {}
    found = {}
    for name in sorted(tasks)[:TASKS]:
        task = tasks[name] if isinstance(tasks[name], dict) else {}
        numbers = ("value", "stderr", "rows", "num_fewshot", "version")
        found[plain(name, 80)] = {one: number(task.get(one)) for one in numbers} | {
            "metric": plain(task.get("metric") or "", 60),
            "higher_is_better": task.get("higher_is_better") is not False,
            "prompts": plain(task.get("prompts_sha256") or "", 64),
            "revision": plain((task.get("dataset") or {}).get("revision") or "", 40),
        }
    told = {name: plain(results.get(name) or "", 60) for name in ("lm_eval", "preset", "backend")}
    return {**told, "average": number(results.get("average")), "tasks": found}


def _decision(decision: Mapping) -> dict:
    if not decision:
        return {}
    alarms = decision.get("alarms")
    best = number(decision.get("best"))
    return {
        "outcome": plain(decision.get("outcome") or "", 40),
        "reason": plain(decision.get("reason") or "", REASON),
        "metric": plain(decision.get("metric") or "", 60),
        "best": None if best is None else int(best),
        "change": _interval(decision.get("change")),
        "margin": _interval(decision.get("margin")),
        "alarms": [plain(alarm, 500) for alarm in alarms[:20]] if isinstance(alarms, list) else [],
    }


def _interval(raw: object) -> dict | None:
    if not isinstance(raw, dict) or number(raw.get("value")) is None:
        return None
    return {name: number(raw.get(name)) for name in ("value", "low", "high", "rows")}


def _with(value: float | None, interval: Mapping | None) -> dict | None:
    """A metric with the interval of its rows."""
    if value is None:
        return None
    return {"low": None, "high": None, "rows": None} | dict(interval or {}) | {"value": value}


def _figure(raw: object) -> float | None:
    return float(raw) if isinstance(raw, bool) else number(raw)
