"""The report's charts as inline SVG: held-out metrics per model, training curves over optimiser steps.

Bytes depend on the figures alone: no date, no random ids, matplotlib's defaults whatever the user's matplotlibrc says.
Colours are written as CSS variables (`--ink`, `--rule`, `--c0` … `--c5`), so that the page's light and dark schemes
apply.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from spin_core.analysis import gate_metric
from spin_core.analysis.format import plain
from spin_core.analysis.results import ModelResults, number
from spin_core.analysis.rows import ModelRow
from spin_core.analysis.verdict import judged_by

INK, RULE = "#a0b0c0", "#a0b0c1"  # stand-ins that `_finish` turns into CSS variables
COLOURS = ("#a0b1d0", "#a0b1d1", "#a0b1d2", "#a0b1d3", "#a0b1d4", "#a0b1d5")
VARIABLES = {INK: "var(--ink)", RULE: "var(--rule)"} | {c: f"var(--c{i})" for i, c in enumerate(COLOURS)}
SIZE = (4.6, 2.9)  # inches; 331 pt wide, so that 9 pt text is readable at the width of a phone
POINTS = 300  # a curve with more steps is drawn as means of equal bins


ANSWERS = ("greedy", "sampled")
MODELS = (  # charts with a mark per model: caption, figures of a report row by their names in the legend
    ("Exact match on held-out prompts", {"greedy": "greedy", "sampled": "sampled"}),
    ("NLL per token of held-out real answers (lower is better)", {"nll": "NLL"}),
    ("Harness: average of the tasks", {"harness/average": "average"}),
    (
        "Margin on held-out pairs",
        {"opponents/margin": "against the previous model", "opponents/margin_start": "against the start"},
    ),
    ("Length of held-out answers in tokens", {f"style/answers/{kind}/tokens": kind for kind in ANSWERS}),
    ("Held-out answers that never end", {f"style/answers/{kind}/truncated": kind for kind in ANSWERS}),
    ("Held-out answers that loop", {f"style/answers/{kind}/loops": kind for kind in ANSWERS}),
)
STEPS = (  # charts over optimiser steps: caption, keys of metrics.jsonl
    ("Training loss", ("loss",)),
    ("Reward margin of the training pairs", ("rewards/margins",)),
    ("Accuracy: real answer rewarded above the generated one", ("rewards/accuracies",)),
    ("Log-probability of real and generated answers", ("logps/real", "logps/generated")),
    ("Rewards of real and generated answers", ("rewards/real", "rewards/generated")),
)


@dataclass(frozen=True)
class Chart:
    """A drawn chart: SVG element, caption, and a text that says the same to a screen reader."""

    title: str
    svg: str
    text: str


@dataclass(frozen=True)
class Curve:
    """One line of a training chart. `xs`: optimiser steps counted over the whole run; `ys` may hold NaN (a gap)."""

    iteration: int
    name: str
    colour: int
    xs: list[float]
    ys: list[float]
    dashed: bool = False


def draw_all(models: list[ModelResults], rows: list[ModelRow]) -> list[Chart]:
    """Every chart there are figures for, in reading order."""
    drawn = [models_chart(title, rows, series) for title, series in (*_of_gate(rows), *MODELS)]
    drawn += [steps_chart(title, curves(models, keys)) for title, keys in STEPS]
    return [chart for chart in drawn if chart is not None]


def _of_gate(rows: list[ModelRow]) -> list[tuple[str, dict[str, str]]]:
    """The chart of the metric that the run is judged by, first, where no other chart has it."""
    metric = judged_by(rows)
    if not gate_metric.column(metric):
        return []
    field = "repetition" if metric.startswith("repetition/") else "match"
    name = gate_metric.name(metric)
    way = " (lower is better)" if gate_metric.is_less_better(metric) else ""
    path = f"style/answers/{gate_metric.kind_of(metric)}/{field}"
    return [(f"What the gate goes by: {name}{way}", {path: gate_metric.column(metric)})]


def models_chart(title: str, rows: list[ModelRow], series: dict[str, str]) -> Chart | None:
    """A mark per model: start and iterations joined by a line, controls as diamonds to the right; None without figures
    other than 0.

    `series`: field of a report row (a path with slashes) → its name in the legend.
    """
    columns = [row for kind in ("start", "iteration", "control") for row in rows if row["kind"] == kind]
    path = sum(row["kind"] != "control" for row in columns)
    names = [name for name in series if any(_point(row, name) for row in columns)]
    if not any(point[0] for row in columns for name in names if (point := _point(row, name))):
        return None
    with _axes() as axes:
        for i, name in enumerate(names):
            shift = 0.08 * (2 * i - len(names) + 1)
            at = [(x + shift, point) for x, row in enumerate(columns) if (point := _point(row, name))]
            line = [(x, point[0]) for x, point in at if x < path - 0.5]
            dashes = ("-", "--")[i % 2]
            axes.plot([x for x, _ in line], [y for _, y in line], COLOURS[i], lw=1.4, ls=dashes, label=series[name])
            for x, (value, low, high) in at:
                bars = [[max(0, value - low)], [max(0, high - value)]]
                mark = "o" if x < path - 0.5 else "D"
                axes.errorbar(x, value, bars, color=COLOURS[i], lw=0.9, capsize=2, fmt=mark, ms=4.5)
        if path < len(columns):
            axes.axvline(path - 0.5, color=RULE, lw=0.8)
        _name_columns(axes, columns)
        if len(names) > 1:
            axes.figure.legend(loc="outside upper left", ncols=len(names))
        values = [
            f"{row['label']}: {series[name]} {point[0]:.3f}"
            for row in columns
            for name in names
            if (point := _point(row, name))
        ]
        return Chart(title, _finish(axes.figure), plain("; ".join(values), 600))


def _name_columns(axes: Any, columns: list[ModelRow]) -> None:
    """Labels below the marks: in full while six have room, else θ_t and C1, C2 … for the controls in table order."""
    if len(columns) <= 6:
        names = ["\n".join(textwrap.wrap(row["label"], 11, max_lines=3, placeholder="…")) for row in columns]
    else:
        controls = itertools.count(1)
        names = [f"C{next(controls)}" if r["kind"] == "control" else f"θ_{r['iteration'] + 1}" for r in columns]
        if any(row["kind"] == "control" for row in columns):
            axes.set_xlabel("C: controls, in the table's order")
    axes.set_xticks(range(len(columns)), names)
    axes.set_xlim(-0.5, len(columns) - 0.5)


def curves(models: list[ModelResults], keys: tuple[str, ...]) -> list[Curve]:
    """Figures of every iteration, one after the other along the run's optimiser steps; the second key is dashed."""
    drawn, offset = [], 0
    for colour, model in enumerate(m for m in models if m.kind == "iteration"):
        for key in keys:
            points = [(offset + i + 1, number(step.get(key))) for i, step in enumerate(model.steps)]
            if any(y is not None for _, y in points):
                xs, ys = _binned(points)
                name = key.split("/")[-1] if len(keys) > 1 else ""
                drawn.append(Curve(model.iteration, name, colour, xs, ys, dashed=key != keys[0]))
        offset += len(model.steps)
    return drawn


def steps_chart(title: str, lines: list[Curve]) -> Chart | None:
    """Curves over optimiser steps, each iteration named above its part of the run; None without curves."""
    if not lines:
        return None
    with _axes() as axes:
        for line in lines:
            mark = "o" if len(line.xs) == 1 else None
            dashes: Any = (0, (3, 1.5)) if line.dashed else "-"
            axes.plot(line.xs, line.ys, COLOURS[line.colour % len(COLOURS)], lw=1.3, ls=dashes, marker=mark, ms=4)
        spans = {line.iteration: line for line in reversed(lines)}
        for line in spans.values():
            text = f"iteration {line.iteration}" if len(spans) <= 4 else str(line.iteration)
            place = {"x": (line.xs[0] + line.xs[-1]) / 2, "y": 1.02, "transform": axes.get_xaxis_transform()}
            axes.text(s=text, ha="center", color=COLOURS[line.colour % len(COLOURS)], **place)
            if line.colour:
                axes.axvline(line.xs[0] - 0.5, color=RULE, lw=0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("optimiser step" if len(spans) <= 4 else "optimiser step (iteration above)")
        styles = {line.name: line.dashed for line in lines if line.name}
        for name, dashed in styles.items():
            axes.plot([], [], INK, lw=1.3, ls=(0, (3, 1.5)) if dashed else "-", label=name)
        if styles:
            axes.figure.legend(loc="outside upper left", ncols=2)
        ends = "; ".join(f"iteration {line.iteration} {line.name}: {_ends(line.ys)}" for line in lines)
        return Chart(title, _finish(axes.figure), plain(ends, 600))


def histogram(title: str, counts: list[int], width: int, unit: str, marks: dict[str, float]) -> Chart:
    """Bars of how many texts have which length: bins of `width` from 0, the last one open. `marks`: settings, drawn as
    lines where the bars reach them."""
    top = width * len(counts)
    with _axes() as axes:
        axes.bar([(i + 0.5) * width for i in range(len(counts))], counts, width * 0.9, color=COLOURS[0])
        axes.set_xlabel(unit)
        axes.set_xlim(0, top)
        for i, (name, value) in enumerate(marks.items(), 1):
            if value <= top:
                axes.axvline(value, color=COLOURS[i % len(COLOURS)], lw=1.2, ls="--", label=f"{name} {value:,.0f}")
        if any(value <= top for value in marks.values()):
            axes.figure.legend(loc="outside upper left")
        fullest = max(range(len(counts)), key=counts.__getitem__)
        said = f"The fullest bar is {fullest * width:,} to {(fullest + 1) * width - 1:,} {unit}: {counts[fullest]:,}"
        return Chart(title, _finish(axes.figure), plain(said, 200))


def shares(title: str, width: int, series: Mapping[str, Sequence[int]], unit: str) -> Chart:
    """How texts' lengths are spread, of several sets of them, each as shares of its own number: lines over bins of
    `width` from 0, the last one open, so that a set that only grew looks as before."""
    with _axes() as axes:
        for i, (name, counts) in enumerate(series.items()):
            edges = [at * width for at in range(len(counts) + 1)]
            parts = [count / max(1, sum(counts)) for count in counts]
            axes.stairs(parts, edges, color=COLOURS[i], lw=1.4, ls=("--", "-")[i % 2], label=name)
        axes.set_xlabel(unit)
        axes.set_ylabel("share of the rows")
        axes.set_ylim(bottom=0)
        axes.figure.legend(loc="outside upper left", ncols=len(series))
        fullest = {name: max(range(len(counts)), key=counts.__getitem__) * width for name, counts in series.items()}
        said = "; ".join(f"{name}: fullest from {at:,} {unit}" for name, at in fullest.items())
        return Chart(title, _finish(axes.figure), plain(said, 200))


@dataclass(frozen=True)
class Mark:
    """A line of `variants_chart`: a figure with the bounds of its interval, and the same figure of each seed."""

    label: str
    value: float
    low: float
    high: float
    each: Sequence[float] = ()
    best: bool = False


def variants_chart(title: str, marks: Sequence[Mark], start: float | None) -> Chart:
    """A figure of each variant of a sweep, one below the other: a mark with its interval over rows, small dots for its
    seeds. `start`: the figure of θ_0, a line through all."""
    with _axes() as axes:
        axes.figure.set_size_inches(SIZE[0], 0.7 + 0.24 * len(marks))
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        for y, mark in enumerate(marks):
            look: dict[str, Any] = {"color": COLOURS[1], "fmt": "D"} if mark.best else {"color": COLOURS[0], "fmt": "o"}
            bars = [[max(0, mark.value - mark.low)], [max(0, mark.high - mark.value)]]
            axes.errorbar(mark.value, y, xerr=bars, lw=1.0, capsize=2, ms=4.5, **look)
            if len(mark.each) > 1:
                axes.plot(mark.each, [y] * len(mark.each), ls="", marker=".", ms=3.5, color=INK)
        if start is not None:
            axes.axvline(start, color=RULE, lw=1.0, ls="--", label="θ_0")
            axes.figure.legend(loc="outside upper left")
        names = [textwrap.shorten(mark.label, 40, placeholder="…") + (" ★" if mark.best else "") for mark in marks]
        axes.set_yticks(range(len(marks)), names)
        axes.set_ylim(len(marks) - 0.5, -0.5)
        said = "; ".join(f"{mark.label}: {mark.value:.3f} ({mark.low:.3f} to {mark.high:.3f})" for mark in marks)
        return Chart(title, _finish(axes.figure), plain(said, 1200))


def runs_chart(title: str, lines: Mapping[str, Sequence[tuple[int, Mark]]]) -> Chart:
    """A figure of each model of several runs over k of θ_k: a line for each run, the last of `lines` in colours, the
    earlier ones grey where there are more than colours."""
    names, first = list(lines), max(0, len(lines) - len(COLOURS))
    with _axes() as axes:
        for i, name in enumerate(names):
            colour = RULE if i < first else COLOURS[i - first]
            ks, marks = [k for k, _ in lines[name]], [mark for _, mark in lines[name]]
            at = [k + 0.03 * (i - (len(names) - 1) / 2) for k in ks] if not first else ks
            below, above = ([max(0, one) for one in side] for side in (
                [mark.value - mark.low for mark in marks], [mark.high - mark.value for mark in marks]
            ))  # fmt: skip
            label = textwrap.shorten(name, 40, placeholder="…") if i >= first else None
            look = {"marker": "o", "ms": 4, "lw": 1.3, "ls": "-", "elinewidth": 0.9, "capsize": 2}
            axes.errorbar(at, [mark.value for mark in marks], [below, above], color=colour, label=label, **look)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(f"k of θ_k ({first} earlier runs in grey)" if first else "k of θ_k")
        axes.figure.legend(loc="outside upper left", ncols=2)
        said = "; ".join(f"{mark.label}: {mark.value:.3f}" for points in lines.values() for _, mark in points)
        return Chart(title, _finish(axes.figure), plain(said, 1200))


def bars(title: str, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> Chart:
    """Stacked bars, one for each name; of many the names of some. `series`: parts of a bar, the lowest first."""
    with _axes() as axes:
        below = [0.0] * len(names)
        for i, (label, values) in enumerate(series.items()):
            axes.bar(range(len(names)), values, 0.8, bottom=below, color=COLOURS[i], label=label)
            below = [low + value for low, value in zip(below, values, strict=True)]
        each = max(1, math.ceil(len(names) / 6))
        axes.set_xticks(range(0, len(names), each), names[::each])
        axes.figure.legend(loc="outside upper left", ncols=len(series))
        said = "; ".join(f"{label} {sum(values):,.3g} in all" for label, values in series.items())
        return Chart(title, _finish(axes.figure), plain(f"{len(names)} bars; {said}", 600))


def _ends(ys: list[float]) -> str:
    seen = [y for y in ys if math.isfinite(y)]
    return f"from {seen[0]:.3g} to {seen[-1]:.3g}"


def _point(row: ModelRow, name: str) -> tuple[float, float, float] | None:
    """A model's figure with its interval (the figure itself where there is none); `name` may be a path with slashes."""
    raw: Any = row
    for part in name.split("/"):
        raw = raw.get(part) if isinstance(raw, dict) else None
    figure = raw if isinstance(raw, dict) else {"value": raw, "low": None, "high": None}
    value = figure["value"]
    if value is None:
        return None
    return (value, value, value) if figure["low"] is None else (value, figure["low"], figure["high"])


def _binned(points: list[tuple[int, float | None]]) -> tuple[list[float], list[float]]:
    """Steps and figures, NaN where there is none; more than POINTS of them as means over equal bins."""
    count = min(len(points), POINTS)
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    bins = [points[start:end] for start, end in itertools.pairwise(edges)]
    known = [[y for _, y in part if y is not None] for part in bins]
    return [sum(x for x, _ in part) / len(part) for part in bins], [sum(y) / len(y) if y else math.nan for y in known]


@contextmanager
def _axes() -> Iterator[Any]:
    """Empty axes, under matplotlib's own defaults with the report's few changes."""
    import matplotlib
    from matplotlib.figure import Figure

    changes: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "spinloop",
        "figure.figsize": SIZE, "figure.constrained_layout.use": True, "figure.facecolor": "none",
        "axes.facecolor": "none", "axes.xmargin": 0.03, "axes.formatter.useoffset": False,
        "text.parse_math": False, "font.size": 9,
        "font.family": ["DejaVu Sans"],
        "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": RULE, "axes.labelcolor": INK,
        "axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE, "grid.linewidth": 0.5,
        "xtick.color": RULE, "ytick.color": RULE,
        "xtick.labelcolor": INK, "ytick.labelcolor": INK, "text.color": INK,
        "legend.labelcolor": INK, "legend.frameon": False,
        "axes.unicode_minus": True,
    }  # fmt: skip
    defaults: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    with matplotlib.rc_context(defaults | changes):
        yield Figure().add_subplot()


def _finish(figure) -> str:
    """The figure as an <svg> for HTML: no prologue, metadata or namespace addresses, no size of its own, colours as
    variables."""
    held = io.StringIO()
    figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = held.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S
    )  # its style rule would hold for the whole page
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(
        r'(<svg [^>]*?)width="[^"]*" height="[^"]*"|(?<=<svg )height="[^"]*" width="[^"]*"', r"\1", svg, count=1
    )
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend|LineCollection)[^"]*"', "", svg)
    # Six decimals of a point, indents and comments are a third of the bytes. Texts (between tags) stay as they are.
    svg = re.sub(
        r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), re.sub(r"<!--.*?-->", "", svg, flags=re.S)
    )
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    # Charts with the same marks have the same ids, which may stand in a page once.
    own = hashlib.sha256(svg.encode()).hexdigest()[:6]
    svg = re.sub(r'(id="|href="#|url\(#)([mp][0-9a-f]{8,})', rf"\1\2-{own}", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg.strip()
