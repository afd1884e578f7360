"""Models of several runs that were evaluated with one setting, as one HTML page, and as text for a terminal: a line for
each model, a picture per figure over the iterations."""

from __future__ import annotations

from collections.abc import Sequence

from spin_core.analysis import gate_metric
from spin_core.analysis.columns import EVALUATION
from spin_core.analysis.evaluation import TASK, Evaluated, heading, is_less_better, sentence
from spin_core.analysis.format import (
    bounds,
    count,
    escape_markdown,
    markdown_table,
    percent,
    plain,
    plain_line,
    share_bounds,
    show,
)
from spin_core.analysis.rows import Estimate
from spin_core.report.charts import Chart, Mark, runs_chart, variants_chart
from spin_core.report.html import rendered
from spin_core.report.tables import Cell, ReportTable, TableLine, with_small

PARTS = (
    ("models", "Models", ("exact_match/", gate_metric.NLL, "spin/")),
    ("harness", "Harness", (gate_metric.HARNESS,)),
    ("style", "Style of the answers", ("truncated/", "loops/", "repetition/", "length/")),
)
"""Of each table its id, title, and how its figures' names begin."""


def page(made: Evaluated, name: str, settings: Sequence[str]) -> str:
    """The file's text: self-contained, no script. `settings`: what was set, as `--set` takes it."""
    texts = {
        "name": plain(name, 80),
        "sentence": plain(sentence(made), 2000),
        "settings": plain(_settings(settings), 2000),
    }
    tables = _tables(made)
    parts = {"figures": tables[0], "others": tables[1:], "charts": _charts(made), "notes": _notes(made)}
    return rendered("evaluation_page.html.j2", kind="evaluation", **texts, **parts)


def text(made: Evaluated, settings: Sequence[str]) -> str:
    """Sentence, notes and tables as Markdown with padded columns."""
    shown = [f"`{plain_line(one, 200).replace('`', '')}`" for one in settings]
    parts = [escape_markdown(sentence(made), 2000), _settings(shown)]
    parts += [escape_markdown(note, 1000) for note in _notes(made)]
    for table in _tables(made):
        lines = [[table.head, *table.columns]]
        lines += [[one.label, *map(with_small, one.cells)] for one in table.lines]
        drawn = markdown_table([[escape_markdown(cell, 160) for cell in line] for line in lines])
        parts.append(f"{escape_markdown(table.title, 160)}:\n\n{drawn}")
    return "\n\n".join(parts)


def _settings(settings: Sequence[str]) -> str:
    return f"Evaluated with {', '.join(settings)}." if settings else "Evaluated as each run has it."


def _notes(made: Evaluated) -> list[str]:
    """What was not measured, and what does not go together."""
    lacks = [f"{one.run}, {one.results.label}: {why}" for one in made.models for why in one.lacks]
    return [plain(note, 1000) for note in [*lacks, *made.notes]]


def _tables(made: Evaluated) -> list[ReportTable]:
    """Those with a figure; the first is there always."""
    tables = []
    for i, (id, title, starts) in enumerate(PARTS):
        metrics = [metric for metric in made.metrics if metric.startswith(starts)]
        if metrics or i == 0:
            columns = ["made", *map(heading, metrics)]
            text, lines = TEXT if i == 0 else "", _lines(made, metrics)
            tables.append(ReportTable(id, title, text, "run, model", columns, lines, EVALUATION))
    return tables


TEXT = "In small print the 95 % interval over the run's held-out rows. ★ the best of its run, by the run's own gate."


def _lines(made: Evaluated, metrics: Sequence[str]) -> list[TableLine]:
    lines = []
    for one, figures in zip(made.models, made.figures, strict=True):
        day = f"{one.made:%Y-%m-%d}" if one.made else ""
        cells: list[Cell] = [(day or "–", ""), *(_cell(metric, figures.get(metric)) for metric in metrics)]
        label = f"{plain(one.run, 80)}, {plain(one.results.label, 80)}" + " ★" * one.best
        small = "" if one.state in ("cached", "measured") else one.state
        lines.append(TableLine(label, cells, one.results.kind, one.best, small))
    return lines


def _cell(metric: str, figure: Estimate | None) -> Cell:
    if figure is None:
        return "–", ""
    value, low, high = figure["value"], figure["low"], figure["high"]
    if gate_metric.is_share(metric):
        return percent(value), share_bounds(low, high)
    digits = 1 if metric.startswith("length/") else 3
    rows = f"; {count(figure['rows'])} items" if metric.startswith(TASK) and figure["rows"] is not None else ""
    return show(value, digits), bounds(low, high, digits) + rows


def _charts(made: Evaluated) -> list[Chart]:
    """Of each figure: over the iterations, or of runs with one model each a mark for each run. Controls are no part of
    the iterations: they stand in the tables."""
    drawn = []
    for metric in made.metrics:
        lines: dict[str, list[tuple[int, Mark]]] = {}
        for one, figures in zip(made.models, made.figures, strict=True):
            figure = figures.get(metric)
            if figure is not None and one.results.kind != "control":
                value, low, high = figure["value"], figure["low"], figure["high"]
                single = value if low is None else low, value if high is None else high
                mark = Mark(f"{one.run}, {one.results.label}", value, *single, best=one.best)
                lines.setdefault(one.run, []).append((one.results.iteration + 1, mark))
        if not lines:
            continue
        title = heading(metric) + (" (lower is better)" if is_less_better(metric, made) else "")
        if max(map(len, lines.values())) > 1:
            drawn.append(runs_chart(title, lines))
        else:
            drawn.append(variants_chart(title, [mark for ((_, mark),) in lines.values()], None))
    return drawn
