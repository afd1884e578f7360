"""A comparison of two runs as one HTML page, and as text for a terminal."""

from __future__ import annotations

from spin_core.analysis.columns import COMPARE
from spin_core.analysis.format import NONE, bounds, escape_markdown, markdown_table, plain, show
from spin_core.analysis.run_comparison import Change, ComparedModels, Comparison
from spin_core.report.html import rendered
from spin_core.report.run import COSTS
from spin_core.report.tables import ReportTable, TableLine, with_small


def page(made: Comparison) -> str:
    """The file's text: self-contained, no script."""
    here, there = plain(made.here.name, 80), plain(made.there.name, 80)
    tables = [_pair(made, pair, i) for i, pair in enumerate(made.pairs)]
    settings = _settings(made)
    name = f"{here} and {there}"
    parts = {"best": tables[0], "others": tables[1:], "settings": settings, "costs": _costs(made)}
    texts = {"name": name, "sentence": plain(made.verdict, 2000), "note": plain(made.note, 1000)}
    return rendered("compare_page.html.j2", kind="comparison", **texts, **parts)


def text(made: Comparison) -> str:
    """Verdict, the best models side by side, settings and costs as Markdown with padded columns."""
    parts = [escape_markdown(made.verdict, 2000), *([escape_markdown(made.note, 1000)] if made.note else [])]
    for table in (_pair(made, made.pairs[0], 0), _settings(made), _costs(made)):
        if table.lines:
            lines = [[table.head, *table.columns], *([one.label, *map(with_small, one.cells)] for one in table.lines)]
            drawn = markdown_table([[escape_markdown(cell, 160) for cell in line] for line in lines])
            parts.append(f"{escape_markdown(table.title, 160)}:\n\n{drawn}")
    return "\n\n".join(parts)


def _pair(made: Comparison, pair: ComparedModels, i: int) -> ReportTable:
    sides = (made.here.name, pair.here), (made.there.name, pair.there)
    both = pair.here == pair.there
    names = [plain(run, 80) if both else f"{label}, {plain(run, 80)}" for run, label in sides]
    title = pair.here if both else f"{pair.here} and {pair.there}"
    title = f"Best models: {title}" if i == 0 else title
    lines = [TableLine(change.name, _cells(change)) for change in pair.changes]
    return ReportTable(f"pair-{i}", title, "", "metric", ["difference", *names], lines, COMPARE)


def _cells(change: Change) -> list[tuple[str, str]]:
    sign = {1: "▲ ", -1: "▼ ", 0: "≈ " if change.rising else ""}[change.better]
    small = f"{bounds(change.low, change.high, signed=True)}; {change.rows:,} rows"
    figure = sign + show(change.value, signed=True)
    return [(figure, small), (show(change.here), ""), (show(change.there), "")]


def _settings(made: Comparison) -> ReportTable:
    columns = [plain(side.name, 80) for side in (made.here, made.there)]
    lines = [TableLine(one.setting, [(one.here, ""), (one.there, "")]) for one in made.settings]
    text = "In a profile's order; names and runtime do not count." if lines else "No setting differs."
    return ReportTable("ledger", "Settings that differ", text, "setting", columns, lines, COMPARE)


def _costs(made: Comparison) -> ReportTable:
    lines = []
    for name, title, describe in COSTS:
        cells = []
        for side in (made.here, made.there):
            total = side.costs["total"]
            used, saved = total["used"][name], total["saved"][name]
            small = f"{describe(saved)} of it cached"
            cells.append((describe(used + saved), small) if used + saved else (NONE, ""))
        if any(figure != NONE for figure, _ in cells):
            lines.append(TableLine(title, cells))
    columns = [plain(side.name, 80) for side in (made.here, made.there)]
    text = "What all steps took when they were computed."
    return ReportTable("costs", "Costs", text, "cost", columns, lines, COMPARE)
