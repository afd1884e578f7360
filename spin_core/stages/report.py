"""The decision, the tables of iterations, the curves and sample answers, as one self-contained HTML file and a Markdown
summary.

Is not: an evaluation. It shows what the evaluate, harness, gate, model and pairs trees say; the only figures it
computes are intervals (Wilson for a rate, paired for a change), differences against the start, and shares of the pair
set. What only a run knows (which steps were cached, what they cost, lineage) is `spin_core/report/run.py`'s.

Inputs: `evaluate` (trees with metrics.json and rows.jsonl), `finetune` (model trees with metrics.jsonl, SFT controls
too), `gather` (pairs trees with quality.json), `harness` (results.json), `gate` (decision.json); all but `evaluate` may
be absent. `Config.rows` says which of them make one line of the table.
Output: `report.html` (nothing fetched; its one script, a search of the samples, is allowed by its hash; the caller may
put `report_run.sections(…)` where `STEPS_MARK` stands), `report.md` (begins with the table), `report.json` (figures).
Assumes: all evaluate trees used the same held-out rows where their ids are equal. A figure that is missing or not
finite is shown as "–" and never counts as zero.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from spin_core.config.base import Section
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job

if TYPE_CHECKING:
    from spin_core.analysis.figures import Model

NAME = "report"
VERSION = 3

TREES = ("evaluate", "finetune", "gather", "harness", "gate")
STEPS_MARK = "<!-- spinloop:steps -->"
"""Stands exactly once in report.html; what a run cached, ran and cost is known only after the stage, to its caller."""


class Row(Section):
    """One line of the table: which evaluate (and finetune, gather, harness, gate) inputs it shows. Indices into the
    inputs lists; -1 is none."""

    label: str
    kind: Literal["start", "iteration", "control"] = Field(
        description="start: θ_0; iteration: a SPIN iteration's result; control: what SPIN is compared with."
    )
    iteration: int = Field(default=-1, ge=-1, description="t of an iteration; -1 for start and controls.")
    evaluate: int = Field(ge=-1)
    finetune: int = Field(default=-1, ge=-1)
    gather: int = Field(default=-1, ge=-1)
    harness: int = Field(default=-1, ge=-1)
    gate: int = Field(default=-1, ge=-1, description="The decision after the line's own iteration.")


class Config(Section):
    """What the report depends on besides the trees it reads."""

    name: str
    profile: dict[str, Any]
    rows: list[Row]


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Writes report.html, report.md and report.json. Raises BadInput for an index without an input and for a damaged
    line."""
    from spin_core.analysis.summary import measured
    from spin_core.analysis.verdict import decided, notes, verdict
    from spin_core.report.charts import draw_all
    from spin_core.report.page import page
    from spin_core.report.samples import samples

    with job.progress("report", len(config.rows) + 2, "parts") as bar:
        models = []
        for row in config.rows:
            models.append(_read(inputs, row))
            bar.advance()
        start = next((model for model in models if model.kind == "start"), None)
        rows = [measured(model, start) for model in models]
        decision = decided(rows)
        figures = {"name": config.name, "sentence": verdict(rows), "decision": decision, "rows": rows}
        figures["notes"] = notes(models, rows)
        charts = draw_all(models, rows)
        bar.advance()
        shown = samples(models, digests=_digests(config, job))
        (job.out / "report.html").write_text(page(figures, charts, shown, config.profile, STEPS_MARK), encoding="utf-8")
        (job.out / "report.md").write_text(_markdown(figures), encoding="utf-8")
        text = json.dumps(figures, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
        (job.out / "report.json").write_text(text + "\n", encoding="utf-8")
        bar.advance()
    return {"models": len(rows), "charts": len(charts), "samples": len(shown["rows"]), "sentence": figures["sentence"]}


def _read(inputs: Inputs, row: Row) -> Model:
    from spin_core.analysis.figures import read_model

    trees = (_pick(inputs, name, getattr(row, name), row.label) for name in TREES)
    return read_model(row.label, row.kind, row.iteration, *trees)


def _digests(config: Config, job: Job) -> dict[str, dict[str, str]]:
    """By label: the evaluate tree that holds a model's answers, and the model where it is an input."""
    found = {}
    for row in config.rows:
        made = {"evaluate": "", "model": ""}
        for name, index in (("evaluate", row.evaluate), ("finetune", row.finetune)):
            listed = job.digests.get(name, [])
            if isinstance(listed, list) and 0 <= index < len(listed):
                made["model" if name == "finetune" else name] = listed[index][:12]
        found[row.label] = made if made["evaluate"] else {}
    return found


def markdown_table(tree: Path) -> str:
    """The Markdown table of a report tree, columns padded, as the command line prints it. Ends without a newline."""
    from spin_core.analysis.figures import text_table

    return text_table(json.loads((tree / "report.json").read_text(encoding="utf-8"))["rows"])


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


def _markdown(figures: dict[str, Any]) -> str:
    """The main table, sentence, decision, notes; then the other tables."""
    from spin_core.analysis.figures import markdown_text, table_text, text_table
    from spin_core.report.tables import tables

    rows, decision = figures["rows"], figures["decision"]
    parts = [text_table(rows), markdown_text(figures["sentence"], 2000)]
    if decision:
        best = f" Best: {decision['best']}." if decision["best"] else ""
        parts.append(markdown_text(f"Decision: {decision['outcome']}.{best} {decision['reason']}", 1000))
    if figures["notes"]:
        parts.append("\n".join(f"- {markdown_text(note, 500)}" for note in figures["notes"]))
    for table in tables(rows)[1:]:
        lines = [
            [
                markdown_text(f"{line.label} ({line.small})" if line.small else line.label, 160),
                *(f"{a} ({b})" if b else a for a, b in line.cells),
            ]
            for line in table.lines
        ]
        titles = [markdown_text(title, 120) for title in (table.head, *table.columns)]
        parts.append(f"{table.title}:\n\n{table_text([titles, *lines])}")
    return "\n\n".join(parts) + "\n"
