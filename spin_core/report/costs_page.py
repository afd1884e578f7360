"""What a store's runs cost, as one HTML page, and as text for a terminal and the UI."""

from __future__ import annotations

from collections.abc import Mapping

from spin_core.analysis.account import Account, Sum, hours_name, share_saved
from spin_core.analysis.columns import COSTS
from spin_core.analysis.format import (
    NONE,
    bytes_text,
    count_text,
    escape_markdown,
    hours_text,
    markdown_table,
    percent,
    plural,
)
from spin_core.report.charts import Chart, bars
from spin_core.report.html import rendered
from spin_core.report.tables import Cell, ReportTable, TableLine, with_small

HOURS = {"gpu_hours": "GPU hours", "cpu_hours": "hours on CPU"}


def page(made: Account, where: str, disk: Mapping[str, int]) -> str:
    """The file's text: self-contained, no script. `where`: the store; `disk`: bytes by profile, and in all."""
    tables = _tables(made, disk)
    texts = {"name": where, "sentence": sentence(made, disk), "notes": _notes(made)}
    return rendered("costs_page.html.j2", kind="costs", tables=tables, chart=_chart(made), **texts)


def text(made: Account, disk: Mapping[str, int]) -> str:
    """Sentence and tables as Markdown with padded columns. `disk`: as `page`; empty where it was not looked at."""
    parts = [sentence(made, disk), *map(lambda note: escape_markdown(note, 1000), _notes(made))]
    for table in _tables(made, disk):
        lines = [[table.head, *table.columns], *([one.label, *map(with_small, one.cells)] for one in table.lines)]
        drawn = markdown_table([[escape_markdown(label, 80), *cells] for label, *cells in lines])
        parts.append(f"{table.title}:\n\n{drawn}")
    return "\n\n".join(parts)


def sentence(made: Account, disk: Mapping[str, int]) -> str:
    """What was computed, and what the cache saved."""
    name = hours_name(made.total)
    used, saved = hours_text(made.total.used[name]), hours_text(made.total.saved[name])
    runs = plural(made.total.executions, "execution")
    share = percent(share_saved(made.total, name))
    return f"{runs} computed {used} {HOURS[name]}; the cache saved {saved} ({share} of what they would have taken)." + (
        f" Disk: {bytes_text(disk[''])}." if disk else ""
    )


def _notes(made: Account) -> list[str]:
    if not made.unknown:
        return []
    some = ", ".join(made.unknown[:5]) + (f" and {len(made.unknown) - 5:,} more" if len(made.unknown) > 5 else "")
    return [f"Of {plural(len(made.unknown), 'run')} from before executions were kept only the last is known: {some}."]


def _tables(made: Account, disk: Mapping[str, int]) -> list[ReportTable]:
    name = hours_name(made.total)
    columns = ["executions", "steps ran", "cached", HOURS[name], "hours saved", "tokens", "tokens saved"]
    all_ = TableLine("all", _cells(made.total, name), "total")

    def with_disk(one: Sum, key: str) -> list[Cell]:
        return _cells(one, name) + ([(bytes_text(disk[key]) if key in disk else NONE, "")] if disk else [])

    profiles = [TableLine(one, with_disk(sum_, one)) for one, sum_ in made.profiles.items()]
    profiles += [TableLine("all", with_disk(made.total, ""), "total")]
    stages, weeks = [*_lines(made.stages, name), all_], [*_lines(made.weeks, name), all_]
    note = "Disk: of the outputs that a profile's runs lead to; one that two profiles share is in both." if disk else ""
    return [
        ReportTable("profiles", "By profile", note, "profile", [*columns, *["disk"] * bool(disk)], profiles, COSTS),
        ReportTable("stages", "By stage", "", "stage", columns, stages, COSTS),
        ReportTable("weeks", "By week", "Weeks begin on Monday (UTC).", "week of", columns, weeks, COSTS),
    ]


def _lines(sums: Mapping[str, Sum], name: str) -> list[TableLine]:
    return [TableLine(label, _cells(one, name)) for label, one in sums.items()]


def _cells(one: Sum, name: str) -> list[Cell]:
    tokens = [sum(of[kind] for kind in ("generated", "trained", "scored")) for of in (one.used, one.saved)]
    return [
        (f"{one.executions:,}", ""), (f"{one.ran:,}", ""), (f"{one.cached:,}", ""),
        (hours_text(one.used[name]), ""), (hours_text(one.saved[name]), percent(share_saved(one, name))),
        (count_text(tokens[0]), ""), (count_text(tokens[1]), ""),
    ]  # fmt: skip


def _chart(made: Account) -> Chart | None:
    name = hours_name(made.total)
    if not made.weeks:
        return None
    series = {
        "computed": [one.used[name] for one in made.weeks.values()],
        "saved by the cache": [one.saved[name] for one in made.weeks.values()],
    }
    return bars(f"{HOURS[name][0].upper()}{HOURS[name][1:]} by week", list(made.weeks), series)
