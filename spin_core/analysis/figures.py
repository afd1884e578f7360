"""What evaluate, model and pairs trees say, as the figures of one table line each: rates with intervals, differences,
shares.

Is not: metrics (evaluate computes them) nor text about them (`spin_core.analysis.verdict`). Imports neither torch nor
pyarrow.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spin_core.errors import BadInput

NONE = "–"
Z95 = 1.959964  # the normal distribution's 97.5 % point
BIDI = frozenset(
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  # could show text in another order than it has


@dataclass(frozen=True)
class Model:
    """One line of the table as read from its trees; empty where a tree or a file is absent."""

    label: str
    kind: str
    iteration: int
    metrics: dict[str, float] = field(default_factory=dict)
    answers: dict[str, dict] = field(default_factory=dict)
    steps: list[dict] = field(default_factory=list)
    quality: dict = field(default_factory=dict)
    harness: dict = field(default_factory=dict)
    decision: dict = field(default_factory=dict)


def read_model(
    label: str,
    kind: str,
    iteration: int,
    evaluate: Path | None,
    finetune: Path | None,
    gather: Path | None,
    harness: Path | None = None,
    gate: Path | None = None,
) -> Model:
    """Reads metrics.json and rows.jsonl, metrics.jsonl, quality.json, results.json, decision.json. Raises BadInput that
    names file and line."""
    metrics = _object(evaluate / "metrics.json") if evaluate else {}
    answers = {str(row.get("id")): row for row in _lines(evaluate / "rows.jsonl")} if evaluate else {}
    steps = list(_lines(finetune / "metrics.jsonl")) if finetune else []
    quality = _object(gather / "quality.json") if gather else {}
    results = _object(harness / "results.json") if harness else {}
    decision = _object(gate / "decision.json") if gate else {}
    finite = {name: value for name, raw in metrics.items() if (value := number(raw)) is not None}
    return Model(label, kind, iteration, finite, answers, steps, quality, results, decision)


def number(raw: object) -> float | None:
    """A finite float, or None for whatever is not one (absent, NaN, infinite, a boolean, text)."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    value = float(raw)
    return value if math.isfinite(value) else None


def wilson(rate: float, rows: int) -> tuple[float, float]:
    """95 % score interval of a rate seen on `rows` independent rows (Wilson 1927). Stays inside [0, 1], rates 0 and 1
    too."""
    square = Z95 * Z95
    centre = (rate + square / (2 * rows)) / (1 + square / rows)
    half = Z95 / (1 + square / rows) * math.sqrt(rate * (1 - rate) / rows + square / (4 * rows * rows))
    return min(rate, max(0.0, centre - half)), max(rate, min(1.0, centre + half))  # rounding aside, the rate is inside


def paired(start: Model, model: Model, match: str) -> dict | None:
    """Change of a match rate on the rows both have: value, 95 % interval (Wald, paired), rows gained and lost. None
    without such rows."""
    both = [
        (bool(start.answers[key][match]), bool(row[match]))
        for key, row in model.answers.items()
        if row.get(match) is not None and start.answers.get(key, {}).get(match) is not None
    ]
    if not both:
        return None
    gained = sum(1 for before, after in both if after and not before)
    lost = sum(1 for before, after in both if before and not after)
    count, value = len(both), (gained - lost) / len(both)
    half = Z95 * math.sqrt(gained + lost - (gained - lost) ** 2 / count) / count
    return {"value": value, "low": value - half, "high": value + half, "gained": gained, "lost": lost, "rows": count}


def table_row(model: Model, start: Model | None) -> dict:
    """The figures of one line, for report.json; None where there is nothing to show."""
    metrics = model.metrics
    row: dict = {
        "label": short(model.label),
        "kind": model.kind,
        "iteration": model.iteration,
        "rows": int(metrics["rows"]) if "rows" in metrics else None,
        "greedy": _rate(model, "greedy"),
        "sampled": _rate(model, "sampled"),
        "nll": metrics.get("nll/real"),
        "margin": metrics.get("spin/margin"),
        "accuracy": metrics.get("spin/accuracy"),
        "steps": len(model.steps) or None,
        "pairs": _pairs(model.quality),
        "delta": {"greedy": None, "sampled": None, "nll": None},
    }
    if start is not None and start is not model:
        for kind in ("greedy", "sampled"):
            row["delta"][kind] = _change(start, model, kind)
        if row["nll"] is not None and "nll/real" in start.metrics:
            row["delta"]["nll"] = row["nll"] - start.metrics["nll/real"]
    return row


def _rate(model: Model, kind: str) -> dict | None:
    value = model.metrics.get(f"exact_match/{kind}")
    if value is None:
        return None
    judged = sum(1 for row in model.answers.values() if row.get(f"{kind}_match") is not None)
    rows = judged or int(model.metrics.get("rows", 0))
    if rows <= 0 or not 0 <= value <= 1:
        return {"value": value, "low": None, "high": None, "rows": None}
    low, high = wilson(value, rows)
    return {"value": value, "low": low, "high": high, "rows": rows}


def _change(start: Model, model: Model, kind: str) -> dict | None:
    before, after = start.metrics.get(f"exact_match/{kind}"), model.metrics.get(f"exact_match/{kind}")
    if before is None or after is None:
        return None
    rows = paired(start, model, f"{kind}_match") or {
        "low": None,
        "high": None,
        "gained": None,
        "lost": None,
        "rows": None,
    }
    return {**rows, "value": after - before}


def _pairs(quality: dict) -> dict | None:
    """Shares of the answers generated for the training rows; `rows` counts them before any is dropped. `rejected`: rows
    beside them whose prompt was too long to be answered."""
    part = quality.get("train")
    part = part if isinstance(part, dict) else {}
    rows = number(part.get("rows"))
    if not rows:
        return None
    counts = {
        "identical": number(part.get("identical_to_real")),
        "truncated": number(part.get("truncated")),
        "empty": number(part.get("empty")),
    }
    shares = {name: None if count is None else count / rows for name, count in counts.items()}
    rejected = number(part.get("rejected"))  # only where there are any, and not among `rows`
    return {"rows": int(rows), **shares, **({"rejected": int(rejected)} if rejected else {})}


# --- text --------------------------------------------------------------------------------


def plain(text: object, limit: int) -> str:
    """Text that any file and screen takes: no control, direction-override or surrogate characters; `limit` characters
    and a count of the rest."""
    raw = str(text)
    cut = raw[:limit]
    shown = "".join(
        "\ufffd" if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") or c in BIDI else c for c in cut
    )
    return shown if len(raw) <= limit else f"{shown}… ({len(raw) - limit:,} more characters)"


def short(text: object) -> str:
    """A label on one line, at most 48 characters."""
    line = " ".join(plain(str(text)[:200], 200).split())
    return line if len(line) <= 48 else line[:47] + "…"


def show(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A figure for a person: true minus sign, "–" for None, no "−0.000"."""
    if value is None:
        return NONE
    text = f"{value:{'+' if signed else ''}.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def percent(share: float | None) -> str:
    """A share as per cent with one digit; a share that is not zero never reads as zero."""
    if share is None:
        return NONE
    return "< 0.1 %" if 0 < share < 0.0005 else f"{share * 100:.1f} %"


def cells(row: dict) -> list[tuple[str, str, str]]:
    """The columns of one line after its label: (title, figure, small print)."""
    delta, pairs = row["delta"], row["pairs"] or {}
    change = delta["greedy"] or delta["sampled"] or {}
    moved = "" if change.get("gained") is None else f"{change['gained']:,} gained, {change['lost']:,} lost"
    return [
        ("EM greedy", *_rate_text(row["greedy"])),
        ("EM sampled", *_rate_text(row["sampled"])),
        ("Δ EM", show(change.get("value"), signed=True), moved),
        ("NLL", show(row["nll"]), ""),
        ("Δ NLL", show(delta["nll"], signed=True), ""),
        ("margin", show(row["margin"]), ""),
        ("accuracy", show(row["accuracy"]), ""),
        ("identical", percent(pairs.get("identical")), ""),
        ("truncated", percent(pairs.get("truncated")), ""),
        ("empty", percent(pairs.get("empty")), f"{pairs['rejected']:,} rejected" if "rejected" in pairs else ""),
    ]


def starred(row: dict) -> str:
    """A line's label; the best model's has a star."""
    return row["label"] + (" ★" if row.get("best") else "")


def _rate_text(rate: dict | None) -> tuple[str, str]:
    if rate is None:
        return NONE, ""
    return show(rate["value"]), "" if rate["low"] is None else f"{rate['low']:.3f}–{rate['high']:.3f}"


def markdown_text(text: str, limit: int) -> str:
    """One line of Markdown that shows `text` as it is: no markup, HTML or table borders of its own."""
    line = " ".join(plain(text, limit).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(
        r"[\\`*\[\]|#~$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line
    )  # θ_0 stays: an underscore inside a word is no markup


def text_table(rows: list[dict]) -> str:
    """Report rows as a Markdown table with padded columns, so that it reads in a terminal too."""
    lines = [["model"]] + [[markdown_text(starred(row), 80)] for row in rows]
    for row, line in zip(rows, lines[1:], strict=True):
        line += [
            f"{figure} ({small})" if small and title.startswith("EM") else figure for title, figure, small in cells(row)
        ]
    blank = {"greedy": None, "sampled": None, "delta": {"greedy": None, "sampled": None, "nll": None}, "pairs": None}
    lines[0] += [title for title, _, _ in cells({**blank, "nll": None, "margin": None, "accuracy": None})]
    return table_text(lines)


def table_text(lines: list[list[str]]) -> str:
    """A Markdown table, titles first, columns padded. Every text must be Markdown already."""
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    drawn = [
        "| "
        + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        + " |"
        for line in lines
    ]
    rule = "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([drawn[0], rule, *drawn[1:]])


# --- files --------------------------------------------------------------------------------


def _object(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error}); run the stage that wrote it again.") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: a JSON object is needed; run the stage that wrote it again.")
    return value


def _lines(path: Path) -> Iterator[dict]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for count, line in enumerate(lines, 1):
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                raise BadInput(f"{path}, line {count}: a JSON object is needed; run the stage that wrote it again.")
            yield value


def setting_text(value: object) -> str:
    """A setting's value as a profile writes it, on one line, cut."""
    if isinstance(value, str):
        return plain(" ".join(value.split()), 120) or '""'
    if isinstance(value, float):
        return f"{value:g}"
    return plain(json.dumps(value, ensure_ascii=False, default=str), 120) if value is not None else "none"
