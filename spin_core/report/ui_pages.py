"""What Prefect's UI shows of a run, as Markdown: the table of iterations, the pair sets, sample answers, the curves,
and what a person reads before deciding whether a run goes on.

Is not: Prefect (`tasks/runner/artifacts.py` sends it), nor the report (that has everything; a page is bounded). Every
text from outside goes through `told`: it cannot become a link, an image, HTML, or a border of a table.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from spin_core.analysis.figures import NONE, Model, cells, number, percent, plain, read_model, show, starred
from spin_core.report.tables import tables
from spin_core.store.record import Record
from spin_core.store.store import Store

PICTURES = 180_000
"""Characters of the curves' page; six charts are 110,000."""
DECISION = 4_000
"""Characters of the form's text: a person reads it in a dialog."""
LINES = 40  # of a table
CELL = 160  # characters of a prompt or an answer
SAMPLES = 8
EMPTY = "(empty)"
KEY = (
    "EM: exact match on held-out prompts, in brackets the 95 % interval; Δ: against the start, in brackets the rows "
    "that became right (+) and wrong (−); NLL: per token of the real answers; ★: the best model; –: not measured."
)
CHART = re.compile(
    r'<figure role="img" aria-label="([^"]*)">\s*<figcaption>([^<]*)</figcaption>\s*(<svg .*?</svg>)', re.DOTALL
)
# Mid-tones: the UI has a light and a dark scheme, and a picture in it cannot see which one is on.
COLOURS = {"ink": "#7c8798", "rule": "#9aa4b3"} | {
    f"c{i}": c for i, c in enumerate(("#3b82f6", "#e07b1a", "#22a06b", "#a855d8", "#e0524a", "#1297a8"))
}


def models(record: Record, store: Store) -> list[Model]:
    """The start and every iteration of a report's `record`: pair quality of all, answers of the last two."""
    lines = [line for line in record.payload["config"]["rows"] if line["kind"] != "control"]
    found = []
    for line in lines:
        trees = {
            stage: store.tree(record.payload["inputs"][stage][line[stage]]) if line[stage] >= 0 else None
            for stage in ("evaluate", "gather")
        }
        answers = trees["evaluate"] if line in lines[-2:] else None
        found.append(read_model(line["label"], line["kind"], line["iteration"], answers, None, trees["gather"]))
    return found


def told(text: object, limit: int = CELL) -> str:
    """`text` on one line of Markdown that shows it as it is."""
    # A place to break in every word without one: a column is as wide as its longest word, and the UI lets it overflow.
    line = re.sub(r"\S{16}(?=\S)", "\\g<0>\u200b", " ".join(plain(text, limit).split()))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"[\\`*_\[\](){}|#~$!^]", r"\\\g<0>", line)
    # GitHub's Markdown makes links of bare addresses too, escaped or not; a word joiner (no width) parts them.
    return re.sub(r"(?i)(?:https?|ftp|xmpp|mailto):|www(?=\.)|@", "\\g<0>\u2060", line)


def iterations(figures: Mapping, report: str, run: str = "") -> str:
    """The report's sentence, notes and table, and where the whole report lies. `run`: its name in runs/, once it has
    ended."""
    end = f"The whole report lies on the machine that ran this: `{_code(report)}`"
    end += f"; there `spinloop report {_code(run)}` prints it." if run else "."
    shown = [_verdict(figures), *_decided(figures), *_notes(figures), table(figures["rows"]), KEY]
    return "\n\n".join([*shown, *_further(figures["rows"]), end])


def table(rows: Sequence[Mapping], columns: int = 7) -> str:
    """A line for each model; figures that no model has are left out."""
    lines = [[told(starred(dict(row)), 50), *map(_figure, cells(dict(row))[:columns])] for row in _ends(rows)]
    titles = ["model", *(title for title, _, _ in cells(dict(rows[0]))[:columns])] if rows else ["model"]
    kept = [i for i in range(len(titles)) if i == 0 or any(line[i] != NONE for line in lines)]
    return _drawn([titles[i] for i in kept], [[line[i] for i in kept] for line in lines])


def pairs(sets: Sequence[tuple[str, Mapping]]) -> str:
    """What the training pairs of each iteration are like. `sets`: the model that learnt from them, its quality.json."""
    titles = [
        "pairs of",
        "answers",
        "pairs",
        "identical",
        "truncated",
        "empty",
        "repeated",
        "length: real",
        "generated",
    ]
    lines = []
    for label, quality in _ends(sets):
        part = quality.get("train")
        part = part if isinstance(part, dict) else {}
        counts = [_count(part.get(name)) for name in ("rows", "pairs")]
        names = ("identical_to_real", "truncated", "empty", "duplicate_answers")
        shares = [percent(number(part.get(f"{name}_fraction"))) for name in names]
        lengths = [show(number(part.get(f"{name}_characters_mean")), 0) for name in ("real", "generated")]
        lines.append([told(label, 48), *counts, *shares, *lengths])
    text = (
        "Generated answers to the training prompts, before any is dropped: equal to the real answer, cut at the length "
        "cap, empty, the same as another prompt's; mean lengths are in characters. Identical pairs teach nothing."
    )
    return f"{_drawn(titles, lines)}\n\n{text}"


def answers(shown: Mapping, count: int = SAMPLES, limit: int = CELL) -> str:
    """`report_page.samples` of two models as a table: prompt, real answer, and what each model answered."""
    found = [row for row in shown["rows"] if any(answer["text"] is not None for answer in row["answers"])]
    if not found:
        return ""
    gained, lost = ([row for row in found if row["tag"] == tag] for tag in ("gained", "lost"))
    other = [row for row in found if row["tag"] not in ("gained", "lost")]
    by_turns = [row for both in zip_longest(gained, lost) for row in both if row is not None]
    rows = (by_turns + other)[:count]
    titles = ["prompt", "real", *(told(answer["label"], 48) for answer in rows[0]["answers"])]
    lines = [
        [told(row["prompt"], limit) or EMPTY, told(row["real"], limit) or EMPTY]
        + [_answer(answer, limit) for answer in row["answers"]]
        for row in rows
    ]
    return told(shown["text"].partition(" Shown:")[0], 300) + "\n\n" + _drawn(titles, lines, numbers=False)


def curves(report: str) -> str:
    """The charts of report.html as pictures that are part of the text; as many as PICTURES holds."""
    parts, left = [], PICTURES
    style = "".join(f"--{name}:{colour};" for name, colour in COLOURS.items())
    for label, title, svg in CHART.findall(report):
        svg = svg.replace(
            "<svg ",
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" style="{style}" ',
            1,
        )
        data = base64.b64encode(svg.encode()).decode()
        name = html.unescape(title)
        part = f"### {told(name)}\n\n![{told(html.unescape(label), 300)}](data:image/svg+xml;base64,{data})"
        left -= len(part)
        if left < 0:
            parts.append(f"### {told(name)}\n\nToo large for this page; the report has it.")
            break
        parts.append(part)
    return "\n\n".join(parts)


def decision(figures: Mapping, shown: Mapping, t: int, count: int) -> str:
    """What a person needs to say whether iteration `t` of `count` is to be played."""
    models = [row for row in figures["rows"] if row["kind"] != "control"]
    label = told(models[-1]["label"], 48) if models else f"θ\\_{t}"
    asked = (
        f"**Is iteration {t} to be played (the last is {count - 1})?** *go on*: {label} plays against itself and "
        f"becomes the next model. *stop here*: the run ends with {label} and its report; nothing computed is lost. "
        "The choice is below this text; *Resume* without one means go on."
    )
    # The dialog has room for five columns.
    parts = [asked, _verdict(figures), *_decided(figures), *_notes(figures, 5), table(figures["rows"], 5)]
    for samples in (3, 2, 1):
        found = answers(shown, samples, 120)
        if found and len("\n\n".join([*parts, found])) <= DECISION:
            return "\n\n".join([*parts, found])
    whole = "\n\n".join(parts)
    return whole if len(whole) <= DECISION else whole[:DECISION].rpartition("\n")[0]


def _verdict(figures: Mapping) -> str:
    return f"**{told(figures['sentence'], 1200)}**"


def _decided(figures: Mapping) -> list[str]:
    """The gate's last word."""
    decision = figures.get("decision")
    if not decision:
        return []
    best = f" Best: {told(decision['best'], 48)} ★." if decision["best"] else ""
    return [f"Gate: **{told(decision['outcome'], 40)}**.{best} {told(decision['reason'], 600)}"]


def _further(rows: Sequence[dict]) -> list[str]:
    """The report's other tables but that of the pairs, which have a page."""
    found = []
    for one in tables(rows)[1:]:
        if one.id != "pairs":
            titles = [told(title, 60) for title in (one.head, *one.columns)]
            lines = [
                [told(f"{line.label} {line.small}", 140), *(f"{a}<br>({b})" if b else a for a, b in line.cells)]
                for line in _ends(one.lines)
            ]
            found.append(f"### {told(one.title)}\n\n{_drawn(titles, lines)}")
    return found


def _notes(figures: Mapping, most: int = 20) -> list[str]:
    notes = figures["notes"]
    lines = [f"- {told(note, 300)}" for note in notes[:most]]
    lines += [f"- … and {len(notes) - most:,} more notes in the report."] if len(notes) > most else []
    return ["\n".join(lines)] if lines else []


def _ends(rows: Sequence) -> list:
    """All of them, or the first and the last where they are too many for a page."""
    return list(rows) if len(rows) <= LINES else [*rows[: LINES // 2], *rows[-LINES // 2 :]]


def _figure(cell: tuple[str, str, str]) -> str:
    _, figure, small = cell
    small = re.sub(r"^([\d,]+) gained, ([\d,]+) lost$", "+\\1\u00a0−\\2", small).replace(
        "–", "\u2060–\u2060"
    )  # one line
    return f"{figure}<br>({small})" if small else figure


def _answer(answer: Mapping, limit: int) -> str:
    if answer["text"] is None:
        return NONE
    mark = {"right": "✓ ", "wrong": "✗ "}.get(answer["mark"], "")
    return mark + (told(answer["text"], limit) or EMPTY)


def _count(raw: object) -> str:
    value = number(raw)
    return NONE if value is None else f"{value:,.0f}"


def _code(text: str) -> str:
    """Text for a code span: no backtick can end it."""
    return " ".join(plain(text, 300).replace("`", "'").split())


def _drawn(titles: list[str], lines: list[list[str]], numbers: bool = True) -> str:
    rule = [":--", *("--:" if numbers else ":--" for _ in titles[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [titles, rule, *lines])
