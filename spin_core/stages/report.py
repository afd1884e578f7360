"""The table of iterations, the curves and sample answers, as one self-contained HTML file and a Markdown summary.

Is not: an evaluation. It shows what the evaluate, model and pairs trees say; the only figures it computes are intervals
(Wilson for a rate, paired for a change), differences against the start, and shares of the pair set.

Inputs: `evaluate` (trees with metrics.json and rows.jsonl), `finetune` (model trees with metrics.jsonl, SFT controls
too), `gather` (pairs trees with quality.json); `Config.rows` says which of them make one line of the table.
Output: `report.html` (no script, nothing fetched; the caller may put `steps_table(…)` where `STEPS_MARK` stands),
`report.md` (begins with the table), `report.json` (the figures).
Assumes: all evaluate trees used the same held-out rows where their ids are equal. A figure that is missing or not
finite is
shown as "–" and never counts as zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.section import Section

VERSION = 2

STEPS_MARK = "<!-- spinloop:steps -->"
"""Stands exactly once in report.html; what a run cached and ran is known only after the stage, to its caller."""


class Row(Section):
    """One line of the table: which evaluate (and finetune, gather) inputs it shows. Indices into the inputs lists; -1
    is none."""

    label: str
    kind: Literal["start", "iteration", "control"] = Field(
        description="start: θ_0; iteration: a SPIN iteration's result; control: what SPIN is compared with."
    )
    iteration: int = Field(default=-1, ge=-1, description="t of an iteration; -1 for start and controls.")
    evaluate: int = Field(ge=-1)
    finetune: int = Field(default=-1, ge=-1)
    gather: int = Field(default=-1, ge=-1)


class Config(Section):
    """What the report depends on besides the trees it reads."""

    name: str
    profile: dict
    rows: list[Row]


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Writes report.html, report.md and report.json. Raises BadInput for an index without an input and for a damaged
    line."""
    from spin_core.charts import draw_all
    from spin_core.figures import read_model, table_row, text_table
    from spin_core.report_page import page, samples
    from spin_core.verdict import notes, verdict

    with job.progress("report", len(config.rows) + 2, "parts") as bar:
        models = []
        for row in config.rows:
            trees = {
                name: _pick(inputs, name, getattr(row, name), row.label) for name in ("evaluate", "finetune", "gather")
            }
            models.append(
                read_model(row.label, row.kind, row.iteration, trees["evaluate"], trees["finetune"], trees["gather"])
            )
            bar.advance()
        start = next((model for model in models if model.kind == "start"), None)
        rows = [table_row(model, start) for model in models]
        figures = {"name": config.name, "sentence": verdict(rows), "notes": notes(models, rows), "rows": rows}
        charts = draw_all(models, rows)
        bar.advance()
        shown = samples(models)
        (job.out / "report.html").write_text(page(figures, charts, shown, config.profile, STEPS_MARK), encoding="utf-8")
        (job.out / "report.md").write_text(_markdown(text_table(rows), figures), encoding="utf-8")
        text = json.dumps(figures, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
        (job.out / "report.json").write_text(text + "\n", encoding="utf-8")
        bar.advance()
    return {"models": len(rows), "charts": len(charts), "samples": len(shown["rows"]), "sentence": figures["sentence"]}


def markdown_table(tree: Path) -> str:
    """The Markdown table of a report tree, columns padded, as the command line prints it. Ends without a newline."""
    from spin_core.figures import text_table

    return text_table(json.loads((tree / "report.json").read_text(encoding="utf-8"))["rows"])


def steps_table(steps: Sequence[Mapping]) -> str:
    """What this run's steps did, as an HTML section to put in place of `STEPS_MARK`.

    `steps`: dicts with stage, label, key, state ("Cached" or "ran"), seconds (that the computation took when it ran;
    None where unknown), digest. All text is escaped.
    """
    from spin_core.report_page import steps_section

    return steps_section(steps)


def _pick(inputs: Inputs, name: str, index: int, label: str) -> Path | None:
    given = inputs.get(name, [])
    trees = given if isinstance(given, list) else [given]
    if index < 0:
        return None
    if index >= len(trees):
        raise BadInput(
            f"report: row {label!r} asks for {name} {index}, and there are {len(trees)}; give it an index below that."
        )
    return trees[index]


def _markdown(table: str, figures: dict) -> str:
    from spin_core.figures import markdown_text

    parts = [
        table,
        markdown_text(figures["sentence"], 2000),
        *(f"- {markdown_text(note, 500)}" for note in figures["notes"]),
    ]
    return "\n\n".join(parts[:2]) + ("\n\n" + "\n".join(parts[2:]) if parts[2:] else "") + "\n"
