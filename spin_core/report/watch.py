"""What is new in a run's dataset since the last run that trained, as sentences, tables and pictures; and whether it is
enough to train on.

Is not: the comparison of rows (`spin_core.data.row_change`), nor in any key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spin_core.analysis.columns import LENGTHS, WATCH
from spin_core.analysis.format import NONE, escape_markdown, markdown_table, plural
from spin_core.data.row_change import SHARES, TEXTS, Change, Counts, Part
from spin_core.report.charts import Chart, shares
from spin_core.report.tables import Cell, ReportTable, TableLine, with_small
from spin_core.report.trained import Trained

FILE = "watch.json"
LINES = 60  # of a table


@dataclass(frozen=True)
class Seen:
    """A look at a dataset. `since`: the last run that trained, None where there is none; `why`: empty, or why its rows
    are not compared; `in_characters`: empty, or why lengths are; `least`: runtime.min_new_rows; `same`: whether that
    run had the same settings; `asked`: a person wants steps computed again; `shards`: of prompts, new ones and
    all; `duplicates`: set → how many rows were rejected as duplicates, before and now."""

    since: Trained | None
    least: int
    change: Change | None = None
    why: str = ""
    in_characters: str = ""
    same: bool = False
    asked: bool = False
    shards: tuple[int, int] | None = None
    duplicates: dict[str, tuple[int, int]] | None = None

    @property
    def held_back(self) -> bool:
        """Whether the run is not to train: fewer rows are new than it asks for, and nothing else speaks for it."""
        if self.change is None or not self.same or self.asked:
            return False
        return self.change.all.train.fresh < self.least

    @property
    def not_started(self) -> str:
        """Empty, or that the run is held back, in a sentence."""
        if not self.held_back or self.since is None or self.change is None:
            return ""
        fresh = plural(self.change.all.train.fresh, "new row")
        return (
            f"Not started: {fresh} of {self.least:,} (runtime.min_new_rows) since {self.since.name}; "
            "--set runtime.min_new_rows=0 runs anyway."
        )

    @property
    def sentence(self) -> str:
        """What is new."""
        if self.since is None:
            return "No run of this profile in the store has trained yet, so its dataset is compared with nothing."
        if self.change is None:
            return f"What is new in the dataset since {self.since.name} cannot be said: {self.why}."
        parts = [_counted(self.change.all.train, "training rows"), _counted(self.change.all.test, "held-out rows")]
        shards = [f"{self.shards[0]:,} of {self.shards[1]:,} shards of prompts to generate"] if self.shards else []
        said = [part for part in parts if part] or ["no row is new, gone or edited"]
        return f"The dataset since {self.since.name}: {'; '.join([*said, *shards])}."

    @property
    def notes(self) -> list[str]:
        """Why a run trains although it asks for new rows, and what is not compared."""
        made = [f"Lengths are in characters: {self.in_characters}."] * bool(self.in_characters)
        if self.least and not self.held_back:
            why = ""
            if self.since is None:
                why = "it is the first"
            elif self.asked:
                why = "--redo asks for it"
            elif not self.same:
                why = f"other settings than {self.since.run}, or not known of it"
            elif self.change is None:
                why = "what is new is not known"
            made += [f"The run trains whatever runtime.min_new_rows says: {why}."] * bool(why)
        return made

    @property
    def has_news(self) -> bool:
        """Whether there is more to say than that nothing changed."""
        return self.change is not None and any(one.changed for one in (self.change.all.train, self.change.all.test))

    def as_json(self) -> dict[str, Any]:
        """watch.json, for other programs."""
        return {**asdict(self), "sentence": self.sentence, "not_started": self.not_started}


def text(seen: Seen) -> str:
    """Sentences and tables as Markdown with padded columns."""
    said = [one for one in (seen.not_started, seen.sentence, *seen.notes) if one]
    parts = [escape_markdown(one, 1000) for one in said]
    for table in tables(seen):
        lines = [[table.head, *table.columns], *([one.label, *map(with_small, one.cells)] for one in table.lines)]
        drawn = markdown_table([[escape_markdown(label, 80), *cells] for label, *cells in lines])
        parts.append(f"{table.title}:\n\n{drawn}")
    return "\n\n".join(parts)


def last_look(folder: Path) -> str:
    """Of the folder of a run that trained: empty, or that too little was new when its dataset was last looked at."""
    with suppress(OSError, ValueError, AttributeError):
        return str(json.loads((folder / FILE).read_text(encoding="utf-8")).get("not_started", ""))
    return ""


def tables(seen: Seen) -> list[ReportTable]:
    """Rows and duplicates, and lengths; none where nothing changed or nothing is compared."""
    if seen.change is None or not seen.has_news:
        return []
    rows = [line for name, part in seen.change.parts.items() for line in _rows(name, part, seen.duplicates or {})]
    spreads = [
        TableLine(_label(name, text), [(_moved(spread.before[one], spread.now[one]), "") for one in SHARES])
        for name, part in seen.change.parts.items()
        for text, spread in part.spreads.items()
    ]
    note = "An edited row has another answer to a prompt that was there. Duplicates are rejected, and no rows."
    lengths = f"Lengths of training rows in {seen.change.unit}"
    made = [
        ReportTable("new-rows", "Rows", note, "rows", ["before", "now", "new", "gone", "edited"], rows[:LINES], WATCH),
        ReportTable("new-lengths", lengths, "", "text", list(SHARES), spreads[:LINES], WATCH | LENGTHS),
    ]
    return [table for table in made if table.lines]


def pictures(seen: Seen) -> list[Chart]:
    """Lengths before and now, of prompts and of answers; none where no row changed."""
    if seen.change is None or not seen.has_news:
        return []
    spreads, unit = seen.change.all.spreads, seen.change.unit
    drawn = []
    for text in TEXTS:
        if spread := spreads.get(text):
            series = {"before": spread.bins[0], "now": spread.bins[1]}
            drawn.append(shares(f"Length of {text}s before and now", spread.width, series, unit))
    return drawn


def _counted(counts: Counts, what: str) -> str:
    """Empty where nothing changed."""
    named = {"new": counts.new, "gone": counts.gone, "edited": counts.edited}
    some = [f"{count:,} {name}" for name, count in named.items() if count]
    return f"{what}: {', '.join(some)}" if some else ""


def _rows(name: str, part: Part, duplicates: dict[str, tuple[int, int]]) -> Iterator[TableLine]:
    for what, counts in (("training rows", part.train), ("held-out rows", part.test)):
        figures = (counts.before, counts.now, counts.new, counts.gone, counts.edited)
        if any(figures):
            yield TableLine(_label(name, what), [(f"{figure:,}", "") for figure in figures])
    none: list[Cell] = [(NONE, "")] * 3
    for what, both in (("further answers to a prompt", part.again), ("duplicates", duplicates.get(name, (0, 0)))):
        if any(both):
            yield TableLine(_label(name, what), [*((f"{count:,}", "") for count in both), *none])


def _label(name: str, what: str) -> str:
    return f"{name}: {what}" if name else what


def _moved(before: int, now: int) -> str:
    return f"{now:,}" if before == now else f"{before:,} → {now:,}"
