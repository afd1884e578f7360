"""What a dataset would be read as, as one HTML page: self-contained, no script, every text escaped and cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spin_core.analysis.columns import DATA, LENGTHS
from spin_core.analysis.format import plain, plural
from spin_core.report import charts
from spin_core.report.html import rendered
from spin_core.report.tables import ReportTable, TableLine

LINES = 200  # lines of a table
TEXT = 6000  # characters of a text


def page(look: Mapping[str, Any], sentence: str, cuts: Sequence[str]) -> str:
    """The file's text. `look` as `spinloop data --json` prints it, `sentence` what came of it, `cuts` a sentence for
    each setting that cuts."""
    known = [one for one in look["lengths"] if one["count"]]
    rejected = sum(one["count"] for one in look["rejected"])
    return rendered(
        "data_page.html.j2",
        kind="data",
        name=plain(look["name"], 120),
        sentence=plain(sentence, 2000),
        notes=[plain(note, 1000) for note in (*look["unused"], *look["notes"])],
        failures=[plain(failure, 2000) for failure in look["failures"]],
        tiles=[
            ("read", f"{look['read']:,}", "rows"),
            ("to train on", f"{look['train']:,}", "rows"),
            ("held out", f"{look['test']:,}", "rows"),
            ("rejected", f"{rejected:,}", "rows"),
        ],
        tokens=look["unit"] == "tokens",
        shown=[_plain(row) for row in look["first"]],
        charts=[_chart(one) for one in known],
        lengths=_lengths(known, look["unit"]),
        cuts=[plain(cut, 300) for cut in cuts],
        rejected=[{**one, "examples": [_plain(seen) for seen in one["examples"]]} for one in look["rejected"]],
        tables=[table for table in (_sets(look), _columns(look), _layout(look), _files(look)) if table.lines],
    )


def _plain(texts: Mapping[str, str]) -> dict[str, str]:
    return {name: plain(text, TEXT) for name, text in texts.items()}


def _chart(one: Mapping[str, Any]) -> charts.Chart:
    marks = {limit["setting"]: limit["value"] for limit in one["limits"] if one["name"] == "prompt"}
    title = f"Length of {one['name']}s"
    return charts.histogram(title, one["counts"], one["width"], one["unit"], marks)


def _lengths(known: Sequence[Mapping[str, Any]], unit: str) -> ReportTable:
    columns = list(known[0]["quantiles"]) if known else []
    lines = [TableLine(one["name"], [(f"{one['quantiles'][share]:,}", "") for share in columns]) for one in known]
    return ReportTable("spread", f"Lengths in {unit}", "", "text", columns, lines, DATA | LENGTHS)


def _sets(look: Mapping[str, Any]) -> ReportTable:
    counts = ("train_rows", "test_rows", "not_drawn")
    lines = [TableLine(plain(name, 60), [(f"{of[one]:,}", "") for one in counts]) for name, of in look["sets"].items()]
    return ReportTable("sets", "Sets", "", "set", ["to train on", "held out", "not drawn"], lines, DATA)


def _columns(look: Mapping[str, Any]) -> ReportTable:
    lines = []
    for one in look["columns"][:LINES]:
        cells = [
            (one["used_as"] or ("not used" if one["filled"] else "empty"), ""),
            (plural(one["filled"], "row"), ""),
        ]
        lines.append(TableLine(plain(one["name"], 80), cells))
    return ReportTable("columns", "Columns", "", "column", ["used as", "filled"], lines, DATA)


def _layout(look: Mapping[str, Any]) -> ReportTable:
    lines = [TableLine(plain(name, 200), [(plural(count, "row"), "")]) for name, count in look["layouts"].items()]
    return ReportTable("layout", "Layout", "", "as dataset.columns says it", ["rows"], lines, DATA)


def _files(look: Mapping[str, Any]) -> ReportTable:
    lines = []
    for one in look["files"][:LINES]:
        cells = [(one["use"] or "not read", ""), (plural(one["rows"], "row") if one["use"] else one["why"], "")]
        lines.append(TableLine(plain(one["name"], 200), cells))
    return ReportTable("files", "Files", "", "file", ["use", "rows, or why not read"], lines, DATA)
