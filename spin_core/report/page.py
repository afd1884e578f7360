"""The report as one HTML file: everything inline, nothing fetched, one script of its own under its hash; every text
from outside escaped and bounded."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from spin_core.analysis import gate_metric
from spin_core.analysis.columns import RUN
from spin_core.analysis.decoders import name_of
from spin_core.analysis.format import plain, setting_text
from spin_core.analysis.rows import Figures, ModelRow
from spin_core.analysis.verdict import figure, headlines, value_of
from spin_core.report.charts import Chart
from spin_core.report.html import rendered
from spin_core.report.samples import TAGS, Samples
from spin_core.report.tables import ReportTable, TableLine, starred, tables

OPEN = 3  # samples that are unfolded at first
FOLDED = 12  # samples before the rest is folded away
# The page's only script: it finds samples by their text and tag. Without it every sample is there, closed.
SCRIPT = "\n" + Path(__file__).with_name("page.js").read_text(encoding="utf-8")
TILES = {"harness": "harness average", "nll/real": "NLL per token", "exact_match/sampled": "exact match, sampled"}


def page(figures: Figures, charts: Sequence[Chart], shown: Samples, profile: Mapping, mark: str) -> str:
    """The file's text. `figures` as in report.json, `shown` from `samples`; `mark` is put once where the sections about
    the run itself belong."""
    import yaml

    rows = figures["rows"]
    return rendered(
        "page.html.j2",
        kind="report",
        name=plain(figures["name"], 120),
        sentence=plain(figures["sentence"], 2000),
        decision=figures.get("decision") or {},
        decoders=plain(figures.get("decoders") or "", 600),
        notes=[plain(note, 500) for note in figures["notes"]],
        tiles=_tiles(rows),
        tables=tables(rows),
        charts=charts,
        samples=shown,
        tags=TAGS,
        open=OPEN,
        folded=FOLDED,
        overrides=overrides(profile),
        # Sorted: profiles that differ in order alone have one key, so they must give the same bytes.
        profile=plain(yaml.safe_dump(dict(profile), sort_keys=True, allow_unicode=True, width=100), 40_000),
        script=SCRIPT,
        hash="sha256-" + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        mark=mark,
    )


def overrides(profile: Mapping) -> ReportTable | None:
    """What single iterations were given instead of the profile's settings; None for a run that changed nothing."""
    given = profile.get("overrides")
    lines = []
    for t, parts in sorted(given.items(), key=lambda one: str(one[0]).zfill(4)) if isinstance(given, dict) else []:
        for section, fields in sorted(parts.items()) if isinstance(parts, dict) else []:
            base = profile.get(section)
            for name, value in sorted(fields.items()) if isinstance(fields, dict) else []:
                usual = base.get(name) if isinstance(base, dict) else None
                cells = [(setting_text(f"{section}.{name}"), ""), (setting_text(usual), ""), (setting_text(value), "")]
                lines.append(TableLine(plain(t, 8), cells))
    columns = ["setting", "all others", "this one"]
    text = "Settings of single iterations that differ from the rest of the run."
    title = "Iterations with settings of their own"
    return ReportTable("overrides", title, text, "iteration", columns, lines, RUN) if lines else None


def _tiles(rows: list[ModelRow]) -> list[tuple[str, str, str]]:
    """The headline: start, best and last iteration, controls, of the first of `headlines` that the start and another
    of them have, else that the start has; models without it are left out."""
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("start", "iteration", "control")}
    best = [row for row in rows if row.get("best")]
    picked = list(
        {id(row): row for row in kinds["start"][:1] + best + kinds["iteration"][-1:] + kinds["control"]}.values()
    )
    made = []
    for metric in headlines(rows):
        known = [row for row in picked if value_of(row, metric) is not None]
        if known and known[0] is picked[0]:
            made.append([(starred(row), figure(row, metric), _tile(metric)) for row in known[:4]])
    return next((tiles for tiles in made if len(tiles) > 1), made[0] if made else [])


def _tile(metric: str) -> str:
    """What stands below the figure."""
    what = "exact match" if metric.startswith("exact_match/") else "repeated 4-grams"
    return TILES.get(metric) or f"{what}, {name_of(gate_metric.kind_of(metric), {})}"
