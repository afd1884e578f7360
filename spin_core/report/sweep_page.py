"""A sweep as one HTML page, and as text for a terminal: every variant's figures, a picture per metric, what each
setting did, and what the runs shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from spin_core.analysis import gate_metric
from spin_core.analysis.columns import SWEEP
from spin_core.analysis.format import escape_markdown, markdown_table, plain, plural
from spin_core.analysis.sweep import START, Figure, Swept, verdict
from spin_core.report.charts import Chart, Mark, variants_chart
from spin_core.report.html import rendered
from spin_core.report.tables import Cell, ReportTable, TableLine, with_small

T = TypeVar("T")


def page(made: Swept, name: str, counts: tuple[int, int]) -> str:
    """The file's text: self-contained, no script. `counts`: steps of all runs that ran, and that were cached."""
    tables = [_against(made), _effects(made)]
    texts = {"name": plain(name, 80), "sentence": plain(verdict(made), 2000), "shared": _shared(made, counts)}
    parts = {"figures": _figures(made), "others": [one for one in tables if one.lines], "charts": _charts(made)}
    return rendered("sweep_page.html.j2", kind="sweep", notes=_notes(made), **texts, **parts)


def text(made: Swept, counts: tuple[int, int]) -> str:
    """Verdict and tables as Markdown with padded columns."""
    parts = [escape_markdown(verdict(made), 2000), *(escape_markdown(one, 1000) for one in _notes(made))]
    for table in (_figures(made), _effects(made)):
        if table.lines:
            lines = [[table.head, *table.columns]]
            for one in table.lines:
                cells = [(figure, small.partition("; ")[0].removeprefix("rows ")) for figure, small in one.cells]
                lines.append([one.label + " ★" * one.best, *map(with_small, cells)])
            drawn = markdown_table([[escape_markdown(label, 160), *cells] for label, *cells in lines])
            parts.append(f"{escape_markdown(table.title, 160)}:\n\n{drawn}")
    return "\n\n".join([*parts, _shared(made, counts)])


def _shared(made: Swept, counts: tuple[int, int]) -> str:
    ran, cached = counts
    runs = sum(len(one.trainings) + len(one.failed) for one in made.variants)
    return (
        f"{plural(len(made.variants), 'variant')}, {plural(runs, 'run')}: {plural(ran, 'step')} ran, {cached:,} were "
        "cached (of another variant, or there before)."
    )


def _notes(made: Swept) -> list[str]:
    """What a reader must not miss: runs that failed, and alarms."""
    failed = [f"{one.label}, {said}" for one in made.variants for said in one.failed]
    return failed + [f"{one.label}, alarm: {one.alarms[0]}" for one in made.variants if one.alarms]


def _figures(made: Swept) -> ReportTable:
    metrics = list(made.figures)
    best = [one for one in made.against if made.best in (one.first, one.second)]
    gaps = {one.second: one for one in best if one.first == made.best} | {
        one.first: replace(one, first=one.second, second=one.first) for one in best if one.second == made.best
    }
    lines = []
    for i in ([START] if made.start else []) + list(range(len(made.variants))):
        gap = gaps.get(i)
        is_above = gap is not None and gap.second == made.best
        word = "" if gap is None else _moved(made, gap.change.value if is_above else -gap.change.value)
        small = (
            "" if gap is None else f"clearly {'better' if is_above else 'worse'}" if gap.is_clear else "within chance"
        )
        if i == START:
            shown = [(gate_metric.shown(metric, made.start.get(metric)), "") for metric in metrics]
            lines.append(TableLine("θ_0", _ordered(shown, (word, small), ("", "")), "start"))
            continue
        one = made.variants[i]
        cells = [_cell(metric, made.figures[metric].get(i)) for metric in metrics]
        alarms = f"{len(one.alarms)} of {len(one.trainings)}" if one.alarms else "none" if one.trainings else ""
        models = ", ".join(dict.fromkeys(run.model.label for run in one.trainings))
        row = _ordered(cells, (word, small), (alarms, ""))
        lines.append(TableLine(one.label, row, "iteration", i == made.best, models))
    text = "Of each variant its last model. ★ the best by the first metric of those that raised no alarm."
    columns = _ordered([_column(metric) for metric in metrics], "to the best", "alarms")
    return ReportTable("sweep", "Variants", text, "variant", columns, lines, SWEEP)


def _ordered(figures: Sequence[T], *judged: T) -> list[T]:
    """What decides stands first: the first metric and what follows from it, then the other metrics."""
    return [*figures[:1], *judged, *figures[1:]]


def _moved(made: Swept, *values: float) -> str:
    """A difference, or the bounds of one, of which more is better, as the difference of the figures shown."""
    return gate_metric.moved(made.metric, *(-one for one in reversed(values)) if _is_less(made) else values)


def _is_less(made: Swept) -> bool:
    return gate_metric.is_less_better(made.metric)


def _column(metric: str) -> str:
    known = {gate_metric.HARNESS: "harness", gate_metric.NLL: "NLL", "exact_match/greedy": "EM greedy"}
    return known.get(metric) or gate_metric.column(metric) or ("EM sampled" if "match" in metric else metric)


def _cell(metric: str, figure: Figure | None) -> Cell:
    if figure is None:
        return "–", ""
    parts = []
    if figure.rows:
        parts.append(f"rows {gate_metric.between(metric, figure.rows.low, figure.rows.high)}")
    if figure.seeds:
        parts.append(f"seeds {gate_metric.between(metric, *figure.seeds)}")
    return gate_metric.shown(metric, figure.value), "; ".join(parts)


def _against(made: Swept) -> ReportTable:
    """The best and each other, the better one first."""
    lines = [
        TableLine(
            f"{made.label(one.first)} and {made.label(one.second)}",
            [
                (_moved(made, one.change.value), _moved(made, one.change.low, one.change.high)),
                (f"{one.agree} of {one.seeds}", ""),
                ("clearly" if one.is_clear else "within chance", ""),
            ],
        )
        for one in sorted(made.against, key=lambda one: -one.change.value)
    ]
    note = (
        f"The first less the second ({'lower' if _is_less(made) else 'higher'} is better), over the same held-out "
        f"rows. Each interval is at {100 * made.corrected:.2f} % (Bonferroni), so that all hold together at "
        f"{100 * made.confidence:.0f} %."
    )
    columns = ["difference", "seeds that agree", "better"]
    return ReportTable("pair-all", "The best beside each other variant", note, "variants", columns, lines, SWEEP)


def _effects(made: Swept) -> ReportTable:
    lines = [
        TableLine(
            f"{one.setting} = {one.value}",
            [(gate_metric.shown(made.metric, one.figure), plural(one.variants, "variant"))],
        )
        for one in made.effects
    ]
    title = f"What each setting does to {gate_metric.name(made.metric)}" if made.metric else "Settings"
    text = "The mean over all variants with that value."
    return ReportTable("effects", title, text, "setting", ["mean"], lines, SWEEP)


def _charts(made: Swept) -> list[Chart]:
    drawn = []
    for metric, figures in made.figures.items():
        marks = []
        unit, scale = (", %", 100) if gate_metric.is_share(metric) else ("", 1)
        for i, figure in figures.items():
            low, high = (figure.rows.low, figure.rows.high) if figure.rows else (figure.value, figure.value)
            value, low, high = (scale * one for one in (figure.value, low, high))
            each = [scale * one for one in figure.each]
            marks.append(Mark(made.variants[i].label, value, low, high, each, i == made.best))
        name = gate_metric.name(metric)
        way = " (lower is better)" if gate_metric.is_less_better(metric) else ""
        start = made.start.get(metric)
        title = f"{name[0].upper()}{name[1:]}{unit}{way}"
        drawn.append(variants_chart(title, marks, None if start is None else scale * start))
    return drawn
