"""What the Prefect UI shows of a run: Markdown artifacts (`spin_core/report/ui_pages.py` has the text), one key for
each kind and profile, so that a page of the UI is the history of one thing.

Not what a run is for: whatever fails here is one warning in its log.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.logging import get_run_logger

from spin_core.analysis.results import ModelResults
from spin_core.analysis.rows import Figures
from spin_core.errors import one_line
from spin_core.job import Entry
from spin_core.report import ui_pages, watch
from spin_core.report.charts import draw_all
from spin_core.report.lineage import lineage
from spin_core.report.samples import samples
from tasks.runner.planning import forecasts
from tasks.runner.run import Run

ADDRESS = re.compile(r"https?://[^\s()<>\[\]\\`]{1,300}")


def show(run: Run, tree: Path, folder: Path) -> None:
    """Create the artifacts of a finished run from the tree of its report; `folder` is its `runs/<name>/`."""
    try:
        _create(run, tree, _models(run, tree), str(folder / "report.html"), folder.name)
        base = os.environ.get("SPINLOOP_REPORTS_URL", "").rstrip("/")
        if ADDRESS.fullmatch(base):
            url, text = f"{base}/{folder.name}/report.html", f"Report of {folder.name}"
            create_link_artifact(url, link_text=text, key=_key(run, "report"))
        elif base:
            get_run_logger().warning(
                "SPINLOOP_REPORTS_URL is not used: give the address at which the store's runs/ is, with http:// or https://."
            )
    except Exception as error:  # the run's work is done, and nothing of it is in danger
        _warn(error)


def looked(run: Run) -> None:
    """Create the page of what is new of a run that ended there."""
    try:
        _create_pages(run, _new(run))
    except Exception as error:
        _warn(error)


def so_far(run: Run, tree: Path, t: int) -> str:
    """Before iteration `t`: create the artifacts of the run so far, and say in Markdown what a person needs to decide
    whether it goes on."""
    figures, models = _figures(tree), _models(run, tree)
    try:
        _create(run, tree, models, str(tree / "report.html"))
    except Exception as error:  # the person can decide without them
        _warn(error)
    newest = [entry.summary for entry in run.ledger if entry.place.iteration == t - 1 and forecasts(entry)]
    last = [sentence for summary in newest for sentence in run.forecast(t - 1, summary)]
    return ui_pages.decision(figures, samples(models[-2:]), t, run.config.iterations, last)


def _create(run: Run, tree: Path, models: list[ModelResults], report: str, name: str = "") -> None:
    figures = _figures(tree)
    charts = draw_all(models, figures["rows"])
    pages = {  # no order helps: Prefect shows a run's pages by their ids, which are random
        "iterations": (
            ui_pages.iterations(figures, report, name),
            "Read first: the models of the run on held-out rows.",
        ),
        "pairs": (ui_pages.pairs(figures["rows"]), "What the models learnt from."),
        "answers": (ui_pages.answers(samples(models[-2:])), "The same prompts before and after the last iteration."),
        "curves": (ui_pages.curves(charts), "Held-out metrics, and the course of training."),
        "lineage": (_lineage(run), "What each model was made of, by content."),
        "redo": (_redone(run), "Steps that were computed again on purpose, and what came of each."),
        **_new(run),
    }
    _create_pages(run, pages)


def _new(run: Run) -> dict[str, tuple[str, str]]:
    """The page of what is new in the dataset; empty for a first run."""
    seen = run.seen
    if seen is None or seen.since is None:
        return {}
    text = "\n\n".join(part for part in (watch.text(seen), ui_pages.curves(watch.pictures(seen))) if part)
    return {"dataset": (text, seen.not_started or "What is new since the last run that trained.")}


def _redone(run: Run) -> str:
    """What `--redo` came to; empty where nothing was asked for."""
    return "\n".join(f"- {ui_pages.escape(line, 1000)}" for line in run.redo.report()) if run.redo.wanted else ""


def _create_pages(run: Run, pages: dict[str, tuple[str, str]]) -> None:
    for kind, (text, description) in pages.items():
        if text:
            create_markdown_artifact(text, key=_key(run, kind), description=description)


def _models(run: Run, tree: Path) -> list[ModelResults]:
    step = next(entry for entry in run.ledger if entry.stage == "report" and entry.digest == tree.name)
    record = run.store.record("report", step.key)
    assert record, step.title
    return ui_pages.models(record, run.store)


def _lineage(run: Run) -> str:
    def inputs(entry: Entry) -> dict:
        record = run.store.record(entry.stage, entry.key)
        return record.payload["inputs"] if record else {}

    place = {title: i for i, title in enumerate(run.titles)}
    return lineage(sorted(run.ledger, key=lambda entry: place[entry.title]), inputs)


def _figures(tree: Path) -> Figures:
    return json.loads((tree / "report.json").read_text(encoding="utf-8"))


def _key(run: Run, kind: str) -> str:
    """`demo-iterations`: keys are made of a-z, 0-9 and dashes, names of profiles also of dots and underscores."""
    return f"{re.sub('[^a-z0-9]', '-', run.config.name)}-{kind}"


def _warn(error: Exception) -> None:
    why = one_line(error, kind=True)
    get_run_logger().warning(f"The UI does not have all of this run's pages ({why}); its report is whole.")
