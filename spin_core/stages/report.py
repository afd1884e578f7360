"""The decision, the tables of iterations, the curves and sample answers, as one self-contained HTML file and a Markdown
summary.

Is not: an evaluation. It shows what evaluate, harness, gate, the trainings and gather wrote; the only figures it
computes are intervals (`spin_core.analysis.statistics`), differences against the start, and shares of the pair set.
What only a run knows (which steps were cached, what they cost, lineage) is `spin_core/report/run.py`'s.

inputs   `evaluate` (metrics.json and rows.jsonl) · `finetune` (metrics.jsonl of a model, of SFT controls too) ·
         `gather` (quality.json of a pair set) · `harness` (results.json) · `gate` (decision.json) · `score`
         (scores.json: where the pairs' tokens are from); all but `evaluate` may be absent, and `Config.rows` names
         those of one row of the table
outputs  `report.html`: nothing fetched; its one script, a search of the samples, is allowed by its hash; the caller may
         put `report.run.sections(…)` where `STEPS_MARK` stands · `report.md`: begins with the table · `report.json`:
         figures
assumes  all models were evaluated on the same held-out rows where the ids are equal. A figure that is missing or not
         finite is shown as "–" and never counts as zero
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from spin_core.config.base import Section, added_field
from spin_core.config.finetune import Finetune
from spin_core.config.objectives import REWARDS
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job

if TYPE_CHECKING:
    from spin_core.analysis.results import ModelResults
    from spin_core.analysis.rows import Figures

NAME = "report"
VERSION = 8
"""2: alarms of the trainings.
3: the decision, tables by topic with intervals, harness, samples that can be searched.
4: where the pairs' ids are from, and how many are cut.
5: the answers of every decoder.
6: alarms name settings that the run's loss has.
7: headline, first table and a chart follow the gate's metric.
8: each column has a tooltip, and each table a list of them."""

ARTIFACTS = ("evaluate", "finetune", "gather", "harness", "gate", "score")
STEPS_MARK = "<!-- spinloop:steps -->"
"""Stands exactly once in report.html; what a run cached, ran and cost is known only after the stage, to its caller."""


class RowInputs(Section):
    """One row of the table: which evaluate (and finetune, gather, harness, gate, score) inputs it shows. Indices into
    the inputs' lists; -1 is none."""

    label: str
    kind: Literal["start", "iteration", "control"] = Field(
        description="start: θ_0; iteration: a SPIN iteration's result; control: what SPIN is compared with."
    )
    iteration: int = Field(default=-1, ge=-1, description="t of an iteration; -1 for start and controls.")
    evaluate: int = Field(ge=-1)
    finetune: int = Field(default=-1, ge=-1)
    gather: int = Field(default=-1, ge=-1)
    harness: int = Field(default=-1, ge=-1)
    gate: int = Field(default=-1, ge=-1, description="The decision after the row's own iteration.")
    score: int = Field(default=-1, ge=-1)


class Config(Section):
    """What the report depends on besides the artifacts it reads."""

    name: str
    profile: dict[str, Any]
    rows: list[RowInputs]
    decoders: list[str] = added_field(default_factory=list)
    """How the opponent and the held-out answers are decoded; and the warning where the two differ in what matters."""


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Writes report.html, report.md and report.json. Raises BadInput for an index without an input and for a damaged
    line."""
    from spin_core.analysis.summary import model_row
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
        rows = [model_row(model, start) for model in models]
        trained = partial(_trained, config.profile)
        decision = decided(rows)  # marks the best row, too
        figures: Figures = {
            "name": config.name, "sentence": verdict(rows), "decision": decision, "rows": rows,
            "notes": [*config.decoders[1:], *notes(models, rows, trained), *_of_loss(config.profile)],
            "decoders": "".join(config.decoders[:1]),
        }  # fmt: skip
        charts = draw_all(models, rows)
        bar.advance()
        shown = samples(models, digests=_digests(config, job))
        (job.out / "report.html").write_text(page(figures, charts, shown, config.profile, STEPS_MARK), encoding="utf-8")
        (job.out / "report.md").write_text(_markdown(figures), encoding="utf-8")
        text = json.dumps(figures, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
        (job.out / "report.json").write_text(text + "\n", encoding="utf-8")
        bar.advance()
    return {"models": len(rows), "charts": len(charts), "samples": len(shown["rows"]), "sentence": figures["sentence"]}


def _trained(profile: dict[str, Any], t: int) -> Finetune:
    """The settings that iteration `t` trained by; the defaults where the profile holds none that can be read."""
    overrides = profile.get("overrides")
    own = {str(key): parts for key, parts in overrides.items()}.get(str(t)) if isinstance(overrides, dict) else None
    held = [part.get("finetune") for part in (profile, own) if isinstance(part, dict)]
    try:
        return Finetune.model_validate({k: v for part in held if isinstance(part, dict) for k, v in part.items()})
    except ValidationError:
        return Finetune()


def _of_loss(profile: dict[str, Any]) -> list[str]:
    """What the training's rewards are where the loss is not SPIN's own."""
    loss = (profile.get("finetune") or {}).get("loss", "")
    return [f"loss {loss}: the rewards of training are {REWARDS[loss]}."] if loss in REWARDS else []


def _read(inputs: Inputs, row: RowInputs) -> ModelResults:
    from spin_core.analysis.results import read_model

    trees: list[Path | None] = []
    for name in ARTIFACTS:
        index, given = getattr(row, name), inputs.get(name, [])
        listed = given if isinstance(given, list) else [given]
        if index >= len(listed):
            raise BadInput(
                f"report: row {row.label!r} asks for {name} {index}, and there are {len(listed)}; give it an index "
                "below that."
            )
        trees.append(listed[index] if index >= 0 else None)
    return read_model(row.label, row.kind, row.iteration, *trees)


def _digests(config: Config, job: Job) -> dict[str, dict[str, str]]:
    """By label: the evaluate artifact that holds a model's answers, and the model where it is an input."""
    digests = {}
    for row in config.rows:
        made = {"evaluate": "", "model": ""}
        for name, index in (("evaluate", row.evaluate), ("finetune", row.finetune)):
            listed = job.digests.get(name, [])
            if isinstance(listed, list) and 0 <= index < len(listed):
                made["model" if name == "finetune" else name] = listed[index][:12]
        digests[row.label] = made if made["evaluate"] else {}
    return digests


def _markdown(figures: Figures) -> str:
    """The main table, sentence, decision, notes; then the other tables."""
    from spin_core.analysis.format import escape_markdown, markdown_table
    from spin_core.report.tables import tables, text_table, with_small

    rows, decision = figures["rows"], figures["decision"]
    parts = [text_table(rows), escape_markdown(figures["sentence"], 2000)]
    if decision:
        best = f" Best: {decision['best']}." if decision["best"] else ""
        parts.append(escape_markdown(f"Decision: {decision['outcome']}.{best} {decision['reason']}", 1000))
    if figures.get("decoders"):
        parts.append(escape_markdown(figures["decoders"], 1000))
    if figures["notes"]:
        parts.append("\n".join(f"- {escape_markdown(note, 500)}" for note in figures["notes"]))
    for table in tables(rows)[1:]:
        titles = [escape_markdown(title, 120) for title in (table.head, *table.columns)]
        lines = [
            [escape_markdown(with_small((line.label, line.small)), 160), *map(with_small, line.cells)]
            for line in table.lines
        ]
        parts.append(f"{table.title}:\n\n{markdown_table([titles, *lines])}")
    return "\n\n".join(parts) + "\n"
