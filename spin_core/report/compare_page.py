"""A comparison of two runs as one HTML page, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from spin_core.analysis.figures import NONE, markdown_text, plain, show, table_text
from spin_core.analysis.run_comparison import Change, Comparison, Pair
from spin_core.report.compare_html import COMPARE
from spin_core.report.html import CSS
from spin_core.report.page import rendered
from spin_core.report.run import count_text, hours_text, time_text
from spin_core.report.tables import Line, Table

COSTS = (
    ("seconds", "time of all steps", time_text),
    ("gpu_hours", "GPU hours", hours_text),
    ("cpu_hours", "hours on CPU", hours_text),
    ("generated", "tokens generated", count_text),
    ("trained", "tokens trained on", count_text),
)


def page(made: Comparison) -> str:
    """The whole file: self-contained, no script."""
    here, there = plain(made.here.name, 80), plain(made.there.name, 80)
    tables = [_pair(made, pair, i) for i, pair in enumerate(made.pairs)]
    settings = _settings(made)
    name = f"{here} and {there}"
    parts = {"best": tables[0], "others": tables[1:], "settings": settings, "costs": _costs(made)}
    return rendered(
        COMPARE, name=name, sentence=plain(made.verdict, 2000), note=plain(made.note, 1000), css=CSS, **parts
    )


def text(made: Comparison) -> str:
    """Verdict, the best models side by side, settings and costs as Markdown with padded columns."""
    parts = [markdown_text(made.verdict, 2000), *([markdown_text(made.note, 1000)] if made.note else [])]
    for table in (_pair(made, made.pairs[0], 0), _settings(made), _costs(made)):
        if table.lines:
            lines = [[line.label, *(f"{a} ({b})" if b else a for a, b in line.cells)] for line in table.lines]
            titles = [table.head, *table.columns]
            made_text = [[markdown_text(cell, 160) for cell in line] for line in [titles, *lines]]
            parts.append(f"{markdown_text(table.title, 160)}:\n\n{table_text(made_text)}")
    return "\n\n".join(parts)


def _pair(made: Comparison, pair: Pair, i: int) -> Table:
    sides = (made.here.name, pair.here), (made.there.name, pair.there)
    both = pair.here == pair.there
    names = [plain(run, 80) if both else f"{label}, {plain(run, 80)}" for run, label in sides]
    title = pair.here if both else f"{pair.here} and {pair.there}"
    title = f"Best models: {title}" if i == 0 else title
    key = [
        (
            "difference",
            "The second run less the first, over the rows that both answered; in small print the 95 % interval "
            "(bootstrap over rows) and the number of rows. ▲ clearly better, ▼ clearly worse, ≈ within what chance "
            "gives.",
        )
    ]
    lines = [Line(change.name, _cells(change)) for change in pair.changes]
    return Table(f"pair-{i}", title, "", "metric", ["difference", *names], lines, key if i == 0 else [])


def _cells(change: Change) -> list[tuple[str, str]]:
    sign = {1: "▲ ", -1: "▼ ", 0: "≈ " if change.rising else ""}[change.better]
    small = f"{show(change.low, signed=True)} to {show(change.high, signed=True)}; {change.rows:,} rows"
    figure = sign + show(change.value, signed=True)
    return [(figure, small), (show(change.here), ""), (show(change.there), "")]


def _settings(made: Comparison) -> Table:
    columns = [plain(side.name, 80) for side in (made.here, made.there)]
    lines = [Line(one.setting, [(one.here, ""), (one.there, "")]) for one in made.settings]
    told = "In a profile's order; names and runtime do not count." if lines else "No setting differs."
    return Table("ledger", "Settings that differ", told, "setting", columns, lines)


def _costs(made: Comparison) -> Table:
    lines = []
    for name, title, told in COSTS:
        sides: Sequence[dict] = [side.costs["total"] for side in (made.here, made.there)]
        if any(side[part][name] for side in sides for part in ("used", "saved")):
            cells = [
                (
                    told(side["used"][name] + side["saved"][name]),
                    f"{told(side['saved'][name])} from the store (not computed again)",
                )
                if side["used"][name] + side["saved"][name]
                else (NONE, "")
                for side in sides
            ]
            lines.append(Line(title, cells))
    columns = [plain(side.name, 80) for side in (made.here, made.there)]
    return Table("costs", "Costs", "What all steps took when they were computed.", "", columns, lines)
