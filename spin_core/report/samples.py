"""Held-out rows side by side: prompt, real answer, and what the models of a run answered; chosen, bounded, searched.

Is not: an evaluation. Which rows are shown never depends on which model looks better: rows that became right and
wrong take turns, then changed answers, ties by hash of the row id.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TypedDict

from spin_core.analysis.format import plain, plural, short, show
from spin_core.analysis.results import ModelResults, number
from spin_core.analysis.verdict import best_of

TEXT = 1200  # characters of a prompt or an answer that are shown
SAMPLES = 200
FIRST = 12  # of them, as many that became right as wrong; then both by turns
BYTES = 1_000_000  # of all texts, as they stand in the page: with charts and tables it stays below 2 MB
MODELS = 5  # side by side

Digests = Mapping[str, Mapping[str, str]]
TAGS = {"gained": "became right", "lost": "became wrong", "changed": "answer changed", "same": "same answer"}


class ShownAnswer(TypedDict):
    """What one model answered. `mark`: right, wrong, or empty where nobody judged it; `made`: what it is traced by."""

    label: str
    text: str | None
    mark: str
    small: str
    made: Mapping[str, str]


class ShownRow(TypedDict):
    """One held-out row. `tag` is one of TAGS."""

    tag: str
    id: str
    prompt: str
    real: str
    answers: list[ShownAnswer]


class Samples(TypedDict):
    """The rows, with a sentence about them."""

    text: str
    rows: list[ShownRow]


def samples(models: Sequence[ModelResults], digests: Digests | None = None) -> Samples:
    """At most SAMPLES rows, with the answers of the start, the best, the previous and the new model and of controls.
    `digests`: label → {evaluate, model}, what an answer is traced by."""
    shown = _side_by_side([model for model in models if model.answers])
    if not shown:
        return {"text": "", "rows": []}
    before = next((m for m in shown if m.kind == "start"), shown[0])
    after = max((m for m in shown if m.kind == "iteration"), key=lambda m: m.iteration, default=before)
    groups: dict[str, list[str]] = {name: [] for name in TAGS}
    keys = before.answers.keys() & after.answers.keys()
    for key in sorted(keys, key=lambda key: hashlib.sha256(key.encode(errors="replace")).digest()):
        groups[_group(before.answers[key], after.answers[key])].append(key)
    gained = groups["gained"][: max(FIRST // 2, FIRST - len(groups["lost"]))]
    lost = groups["lost"][: FIRST - len(gained)]
    picked = [(key, "gained") for key in gained] + [(key, "lost") for key in lost]
    for pair in zip_longest(groups["gained"][len(gained) :], groups["lost"][len(lost) :]):
        picked += [(key, tag) for key, tag in zip(pair, ("gained", "lost"), strict=True) if key is not None]
    picked += [(key, name) for name in ("changed", "same") for key in groups[name]]
    rows = _bounded(picked[:SAMPLES], shown, before, digests or {})
    return {"text": _describe(groups, before, after, len(rows)), "rows": rows}


def _side_by_side(models: list[ModelResults]) -> list[ModelResults]:
    """All of them, or where they are more than MODELS: the start, the best, the last two iterations, then controls."""
    if len(models) <= MODELS:
        return models
    done = sorted((m for m in models if m.kind == "iteration"), key=lambda m: m.iteration)
    players = [m for m in models if m.kind != "control"]
    best = best_of((m.decision for m in players), len(players))
    wanted = [m for m in models if m.kind == "start"][:1] + done[-2:]
    if best is not None:
        wanted.append(players[best])
    wanted += [m for m in models if m.kind == "control"]
    kept = list({id(model): model for model in wanted}.values())[:MODELS]
    return [model for model in models if any(model is one for one in kept)]


def _describe(groups: Mapping[str, list], before: ModelResults, after: ModelResults, count: int) -> str:
    total = sum(map(len, groups.values()))
    judged = any(
        row.get("greedy_match") is not None or row.get("sampled_match") is not None for row in after.answers.values()
    )
    text = f"{total:,} held-out rows."
    if judged and after is not before:
        moved = f"{plural(len(groups['gained']), 'row')} became right and {len(groups['lost']):,} wrong"
        text = f"From {short(before.label)} to {short(after.label)}, {moved}, of {total:,}."
    return f"{text} Shown: {count:,}."


def _bounded(picked: list, shown: Sequence[ModelResults], before: ModelResults, digests: Digests) -> list[ShownRow]:
    rows: list[ShownRow] = []
    size = 0
    for key, tag in picked:
        row = _sample(key, tag, shown, before, digests)
        texts = [row["prompt"], row["real"], *(answer["text"] or "" for answer in row["answers"])]
        size += sum(len(html.escape(text).encode(errors="replace")) for text in texts) + 300 * len(texts)
        if size > BYTES and rows:
            break
        rows.append(row)
    return rows


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


def _sample(key: str, tag: str, models: Sequence[ModelResults], start: ModelResults, digests: Digests) -> ShownRow:
    first = start.answers[key]
    answers: list[ShownAnswer] = []
    for model in models:
        row = model.answers.get(key, {})
        text, match = _answer(row), row.get("greedy_match" if "greedy" in row else "sampled_match")
        nll, margin = number(row.get("nll")), number(row.get("margin"))
        small = [f"NLL {show(nll)}"] if nll is not None else []
        small += [f"margin {show(margin)}"] if margin is not None else []
        answers.append(
            {
                "label": short(model.label),
                "text": None if text is None else plain(text, TEXT),
                "mark": "" if match is None else "right" if match else "wrong",
                "small": ", ".join(small),
                "made": digests.get(model.label, {}),
            }
        )
    prompt, real = plain(first.get("prompt", ""), TEXT), plain(first.get("real", ""), TEXT)
    return {"tag": tag, "id": plain(key, 64), "prompt": prompt, "real": real, "answers": answers}
