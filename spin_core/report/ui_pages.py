"""What Prefect's UI shows of a run, as Markdown: the table of iterations, the pair sets, sample answers, the curves,
and what a person reads before deciding whether a run goes on.

Is not: Prefect (`tasks/runner/artifacts.py` sends it), nor the report (that has everything; a page is bounded). Every
text from outside goes through `escape`: it cannot become a link, an image, HTML, or a border of a table.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from spin_core.analysis.format import ALL_MARKUP, NONE, escape_markdown, plain_line
from spin_core.analysis.results import ModelResults, read_model
from spin_core.analysis.rows import Figures, ModelRow
from spin_core.analysis.verdict import figure
from spin_core.report.charts import Chart
from spin_core.report.samples import Samples, ShownAnswer
from spin_core.report.tables import TITLES, Cell, ReportTable, figure_cells, own_column, starred, tables
from spin_core.store.record import Record
from spin_core.store.store import Store

PICTURES = 180_000
"""Characters of the curves' page; six charts are 110,000."""
DECISION = 4_000
"""Characters of the form's text: a person reads it in a dialog."""
LINES = 40  # of a table
COLUMNS = 5  # of figures in a table of the report; the page is 640 pixels wide
WIDE = 80  # characters of a line of other tables, with three between columns
SHORT = 16  # characters that are kept on one line of a cell
CELL = 160  # characters of a prompt or an answer
SAMPLES = 8
EMPTY = "(empty)"
KEY = (
    "EM: exact match on held-out prompts, in brackets the 95 % interval; Δ: against the start, in brackets the rows "
    "that became right (+) and wrong (−); NLL: per token of the real answers; ★: the best model; –: not measured; "
    "repetition, where the gate goes by it: the share of their 4-grams that answers repeat (greedy ones, or as said)."
)
# Mid-tones: the UI has a light and a dark scheme, and a picture in it cannot see which one is on.
COLOURS = {"ink": "#7c8798", "rule": "#9aa4b3"} | {
    f"c{i}": c for i, c in enumerate(("#3b82f6", "#e07b1a", "#22a06b", "#a855d8", "#e0524a", "#1297a8"))
}


def models(record: Record, store: Store) -> list[ModelResults]:
    """The start and every iteration of a report's `record`: training of all, answers of the last two."""
    rows = [row for row in record.payload["config"]["rows"] if row["kind"] != "control"]

    def tree(row: Mapping, stage: str) -> Path | None:
        return store.tree(record.payload["inputs"][stage][row[stage]]) if row[stage] >= 0 else None

    return [
        read_model(
            row["label"],
            row["kind"],
            row["iteration"],
            evaluate=tree(row, "evaluate") if row in rows[-2:] else None,
            finetune=tree(row, "finetune"),
        )
        for row in rows
    ]


def escape(text: object, limit: int = CELL) -> str:
    """`text` on one line of Markdown that shows it as it is."""
    # A place to break in every word without one: a column is as wide as its longest word, and the UI lets it overflow.
    line = re.sub(r"\S{16}(?=\S)", "\\g<0>\u200b", plain_line(text, limit))
    line = escape_markdown(line, len(line), ALL_MARKUP)
    # GitHub's Markdown makes links of bare addresses too, escaped or not; a word joiner (no width) parts them.
    return re.sub(r"(?i)(?:https?|ftp|xmpp|mailto):|www(?=\.)|@", "\\g<0>\u2060", line)


def iterations(figures: Figures, report: str, run: str = "") -> str:
    """The report's sentence, notes and table, and where the report itself lies. `run`: its name in runs/, once it has
    ended."""
    end = f"The report itself lies on the machine that ran this: `{_code(report)}`"
    end += f"; there `spinloop report {_code(run)}` prints it." if run else "."
    shown = [_verdict(figures), *_decided(figures), *_notes(figures), table(figures["rows"]), KEY]
    return "\n\n".join([*shown, *_further(figures["rows"]), end])


def table(rows: Sequence[ModelRow], columns: int = 7) -> str:
    """A line for each model; figures that no model has are left out."""
    metric, own = own_column(rows)
    named = (*own, *TITLES)
    shown = [
        (escape(starred(row), 50), [*((figure(row, metric), "") for _ in own), *figure_cells(row)])
        for row in _ends(rows)
    ]
    kept = [i for i in range(columns) if any(cells[i][0] != NONE for _, cells in shown)]
    titles = ["model", *(named[i] for i in kept)]
    lines = [[label, *(_figure(cells[i]) for i in kept)] for label, cells in shown]
    return _drawn(titles, lines)


def pairs(rows: Sequence[ModelRow]) -> str:
    """What the training pairs of each iteration are like; empty where no model has any."""
    text = (
        "Generated answers to the training prompts, before any is dropped: equal to the real answer, cut at the length "
        "cap, empty, the same as another prompt's; mean lengths are in characters. Identical pairs teach nothing."
    )
    return "".join(f"{_report_table(one)}\n\n{text}" for one in tables(rows)[1:] if one.id == "pairs")


def answers(shown: Samples, most: int = SAMPLES, limit: int = CELL) -> str:
    """`samples` of two models as a table: prompt, real answer, and what each model answered."""
    answered = [row for row in shown["rows"] if any(answer["text"] is not None for answer in row["answers"])]
    if not answered:
        return ""
    gained, lost = ([row for row in answered if row["tag"] == tag] for tag in ("gained", "lost"))
    other = [row for row in answered if row["tag"] not in ("gained", "lost")]
    by_turns = [row for both in zip_longest(gained, lost) for row in both if row is not None]
    rows = (by_turns + other)[:most]
    titles = ["prompt", "real", *(escape(answer["label"], 48) for answer in rows[0]["answers"])]
    lines = [
        [escape(row["prompt"], limit) or EMPTY, escape(row["real"], limit) or EMPTY]
        + [_answer(answer, limit) for answer in row["answers"]]
        for row in rows
    ]
    return escape(shown["text"].partition(" Shown:")[0], 300) + "\n\n" + _drawn(titles, lines, numbers=False)


def curves(charts: Sequence[Chart]) -> str:
    """The report's charts as pictures that are part of the text; as many as PICTURES holds."""
    parts, left = [], PICTURES
    style = "".join(f"--{name}:{colour};" for name, colour in COLOURS.items())
    names = f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="{style}"'
    for chart in charts:
        title = escape(chart.title)
        drawn = embedded(f"{chart.title}. {chart.text}", chart.svg.replace("<svg ", f"<svg {names} ", 1))
        part = f"### {title}\n\n{drawn}"
        left -= len(part)
        if left < 0:
            parts.append(f"### {title}\n\nToo large for this page; the report has it.")
            break
        parts.append(part)
    return "\n\n".join(parts)


def embedded(text: str, svg: str) -> str:
    """A picture as a part of the page; `text` says what it shows to who cannot see it."""
    return f"![{escape(text, 300)}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def decision(figures: Figures, shown: Samples, t: int, total: int, forecast: Sequence[str] = ()) -> str:
    """What a person needs to say whether iteration `t` of `total` is to be run. `forecast`: what the pairs of the one
    before could teach, as those of this one are not drawn yet."""
    models = [row for row in figures["rows"] if row["kind"] != "control"]
    label = escape(models[-1]["label"], 48) if models else f"θ\\_{t}"
    question = (
        f"**Is iteration {t} to be run (the last is {total - 1})?** *go on*: {label} is trained against its own "
        f"answers and becomes the next model. *stop here*: the run ends with {label} and its report; nothing computed "
        "is lost. The choice is below this text; *Resume* without one means go on."
    )
    # The dialog has room for five columns.
    said = [escape(f"Iteration {t - 1}, before its training: {' '.join(forecast)}", 1000)] if forecast else []
    parts = [question, _verdict(figures), *_decided(figures), *said, *_notes(figures, 5), table(figures["rows"], 5)]
    for samples in (3, 2, 1):
        text = answers(shown, samples, 120)
        if text and len("\n\n".join([*parts, text])) <= DECISION:
            return "\n\n".join([*parts, text])
    text = "\n\n".join(parts)
    return text if len(text) <= DECISION else text[:DECISION].rpartition("\n")[0]


def _verdict(figures: Figures) -> str:
    return f"**{escape(figures['sentence'], 1200)}**"


def _decided(figures: Figures) -> list[str]:
    """The gate's last decision."""
    decision = figures.get("decision")
    if not decision:
        return []
    best = f" Best: {escape(decision['best'], 48)} ★." if decision["best"] else ""
    return [f"Gate: **{escape(decision['outcome'], 40)}**.{best} {escape(decision['reason'], 600)}"]


def _further(rows: Sequence[ModelRow]) -> list[str]:
    """The report's other tables but that of the pairs, which have a page."""
    return [f"### {escape(one.title)}\n\n{_report_table(one)}" for one in tables(rows)[1:] if one.id != "pairs"]


def _report_table(table: ReportTable) -> str:
    """In parts as wide as the page, one below the other: of a wider table one UI hides what is on the right, and the
    other draws it over what stands beside the page."""
    most = COLUMNS - any(cell[1] for line in table.lines for cell in line.cells)  # an interval is wide
    parts = max(1, math.ceil(len(table.columns) / most))
    wide = math.ceil(len(table.columns) / parts)
    return "\n\n".join(_columns(table, slice(i * wide, (i + 1) * wide)) for i in range(parts))


def narrow(text: str) -> str:
    """Markdown of a terminal (`format.markdown_table`) for the page: a table that is too wide for it in parts, one
    below the other, each with the first column."""
    return "\n\n".join(_narrow(part) if part.startswith("| ") else part for part in text.split("\n\n"))


def _narrow(table: str) -> str:
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    first, *widths = (max(map(len, column)) + 3 for column in zip(*rows, strict=True))
    parts, used = [[0]], first
    for i, width in enumerate(widths, 1):
        if used + width > WIDE and len(parts[-1]) > 1:
            parts, used = [*parts, [0]], first
        parts[-1].append(i)
        used += width
    return "\n\n".join("\n".join(f"| {' | '.join(row[i] for i in part)} |" for row in rows) for part in parts)


def _columns(table: ReportTable, columns: slice) -> str:
    titles = [escape(title, 60) for title in (table.head, *table.columns[columns])]
    lines = [
        [escape(f"{line.label} {line.small}", 140), *map(_small, line.cells[columns])] for line in _ends(table.lines)
    ]
    return _drawn(titles, lines)


def _notes(figures: Figures, most: int = 20) -> list[str]:
    notes = figures["notes"]
    lines = [f"- {escape(note, 300)}" for note in notes[:most]]
    lines += [f"- … and {len(notes) - most:,} more notes in the report."] if len(notes) > most else []
    return ["\n".join(lines)] if lines else []


def _ends(rows: Sequence) -> list:
    """All of them, or the first and the last where they are too many for a page."""
    return list(rows) if len(rows) <= LINES else [*rows[: LINES // 2], *rows[-LINES // 2 :]]


def _figure(cell: Cell) -> str:
    figure, small = cell
    small = re.sub(r"^([\d,]+) gained, ([\d,]+) lost$", "+\\1\u00a0−\\2", small)
    return _small((figure, small.replace("–", "\u2060–\u2060")))  # on one line


def _small(cell: Cell) -> str:
    figure, small = cell
    small = small.replace(" ", "\u00a0") if len(small) <= SHORT else small  # 0.722 to 1.377 on one line
    return f"{figure}<br>({small})" if small else figure


def _answer(answer: ShownAnswer, limit: int) -> str:
    if answer["text"] is None:
        return NONE
    mark = {"right": "✓ ", "wrong": "✗ "}.get(answer["mark"], "")
    return mark + (escape(answer["text"], limit) or EMPTY)


def _code(text: str) -> str:
    """Text for a code span: no backtick can end it."""
    return plain_line(text, 300).replace("`", "'")


def _drawn(titles: list[str], lines: list[list[str]], numbers: bool = True) -> str:
    rule = [":--", *("--:" if numbers else ":--" for _ in titles[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [titles, rule, *lines])
