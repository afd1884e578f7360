"""The report as one HTML file: everything inline, nothing fetched, no script; every text from outside escaped and
bounded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from spin_core.charts import Chart
from spin_core.figures import Model, cells, number, plain, short, show
from spin_core.report_html import CSS, PAGE, STEPS

TEXT = 1200  # characters of a prompt or an answer that are shown
SAMPLES = 12


def page(figures: dict, charts: Sequence[Chart], shown: dict, profile: Mapping, mark: str) -> str:
    """The whole file. `figures` as in report.json, `shown` from `samples`; `mark` is put once where the steps table
    belongs."""
    import yaml

    rows = figures["rows"]
    table = [{"label": row["label"], "kind": row["kind"], "cells": cells(row)} for row in rows]
    return _render(
        PAGE,
        name=plain(figures["name"], 120),
        sentence=plain(figures["sentence"], 2000),
        notes=[plain(note, 500) for note in figures["notes"]],
        tiles=_tiles(rows),
        columns=[title for title, _, _ in table[0]["cells"]] if table else [],
        table=table,
        charts=charts,
        samples=shown,
        # Sorted: profiles that differ in order alone have one key, so they must give the same bytes.
        profile=plain(yaml.safe_dump(dict(profile), sort_keys=True, allow_unicode=True, width=100), 40_000),
        css=CSS,
        mark=mark,
    )


def samples(models: Sequence[Model]) -> dict:
    """{text, rows}: held-out rows side by side. Rows whose verdict changed from the start to the last iteration come
    first
    (as many that became right as became wrong, while there are both), then changed answers; ties by hash of the row id.
    """
    shown = [model for model in models if model.answers]
    if not shown:
        return {"text": "", "rows": []}
    before = next((m for m in shown if m.kind == "start"), shown[0])
    after = max((m for m in shown if m.kind == "iteration"), key=lambda m: m.iteration, default=before)
    groups: dict[str, list[str]] = {"gained": [], "lost": [], "changed": [], "same": []}
    for key in sorted(
        before.answers.keys() & after.answers.keys(),
        key=lambda key: hashlib.sha256(key.encode(errors="replace")).digest(),
    ):
        groups[_group(before.answers[key], after.answers[key])].append(key)
    half = SAMPLES // 2
    gained = groups["gained"][: max(half, SAMPLES - len(groups["lost"]))]
    lost = groups["lost"][: SAMPLES - len(gained)]
    picked = [(key, "gained") for key in gained] + [(key, "lost") for key in lost]
    picked += [(key, name) for name in ("changed", "same") for key in groups[name]]
    moved = f"{len(groups['gained']):,} rows became right and {len(groups['lost']):,} wrong"
    counts = f"From {short(before.label)} to {short(after.label)}, {moved}"
    total = sum(len(keys) for keys in groups.values())
    judged = any(
        row.get("greedy_match") is not None or row.get("sampled_match") is not None for row in after.answers.values()
    )
    text = f"{counts}, of {total:,}." if judged and after is not before else f"{total:,} held-out rows."
    return {
        "text": f"{text} Shown: {min(SAMPLES, total)}.",
        "rows": [_sample(key, tag, shown, before) for key, tag in picked[:SAMPLES]],
    }


def steps_section(steps: Sequence[Mapping]) -> str:
    """The section of `spin_core.stages.report.steps_table`."""
    shown: list[dict] = []
    times = {True: 0.0, False: 0.0}  # seconds of the steps that were cached, and of those that ran
    for step in steps:
        cached, seconds = step.get("state") == "Cached", number(step.get("seconds"))
        times[cached] += seconds or 0.0
        text = {name: short(step.get(name) or "") for name in ("label", "stage", "state")}
        text |= {name: plain(str(step.get(name) or "")[:12], 12) for name in ("key", "digest")}
        shown.append({**text, "cached": cached, "time": _time(seconds)})
    hits = sum(bool(step["cached"]) for step in shown)
    told = f"{hits:,} of {len(shown):,} steps were cached"
    if hits:
        told += f", which saved {_time(times[True])}"
    if hits < len(shown):
        told += f"; the others took {_time(times[False])}"
    return _render(STEPS, steps=shown, text=told + ".")


def _render(template: str, **values: object) -> str:
    import jinja2

    made = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return made.from_string(template).render(**values)


def _tiles(rows: list[dict]) -> list[tuple[str, str, str]]:
    """The headline: start, last iteration, best control, of the first metric that the start has."""
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("start", "iteration", "control")}
    picked = kinds["start"][:1] + kinds["iteration"][-1:] + kinds["control"]
    for metric, name in (
        ("greedy", "exact match, greedy"),
        ("sampled", "exact match, sampled"),
        ("nll", "NLL per token"),
    ):
        figures = [
            (row["label"], row[metric]["value"] if isinstance(row[metric], dict) else row[metric]) for row in picked
        ]
        if figures and figures[0][1] is not None:
            return [(label, show(value), name) for label, value in figures[:4]]
    return []


def _group(before: Mapping, after: Mapping) -> str:
    for kind in ("greedy", "sampled"):
        old, new = before.get(f"{kind}_match"), after.get(f"{kind}_match")
        if old is not None and new is not None and bool(old) != bool(new):
            return "gained" if new else "lost"
        if old is not None and new is not None:
            break  # greedy, where there is one, decides alone
    return "changed" if _answer(before) != _answer(after) else "same"


def _answer(row: Mapping) -> object:
    return row.get("greedy", row.get("sampled"))


def _sample(key: str, tag: str, models: Sequence[Model], start: Model) -> dict:
    first = start.answers[key]
    answers = []
    for model in models:
        row = model.answers.get(key, {})
        text, match = _answer(row), row.get("greedy_match" if "greedy" in row else "sampled_match")
        mark = "" if match is None else "right" if match else "wrong"
        nll = number(row.get("nll"))
        answers.append(
            {
                "label": short(model.label),
                "text": None if text is None else plain(text, TEXT),
                "mark": mark,
                "nll": "" if nll is None else show(nll),
            }
        )
    said = {"gained": "became right", "lost": "became wrong", "changed": "answer changed", "same": "same answer"}[tag]
    prompt, real = plain(first.get("prompt", ""), TEXT), plain(first.get("real", ""), TEXT)
    return {
        "tag": tag,
        "said": said,
        "head": " ".join(prompt.split())[:90],
        "prompt": prompt,
        "real": real,
        "answers": answers,
    }


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"
