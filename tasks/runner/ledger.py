"""The ledger of a run: what each step did, and `runs/<name>/`, where a person finds it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from prefect.logging import get_run_logger

from spin_core.config.profile import Config
from spin_core.errors import one_line
from spin_core.job import Entry
from spin_core.report import run_card, run_facts
from spin_core.report.run import sections
from spin_core.stages.report import STEPS_MARK
from spin_core.store import keys, runs
from spin_core.store.store import Store


def run_name(config: Config) -> str:
    """`demo-3fa9c1`: the profile's name and a digest of its settings, so that the same settings are the same run
    folder."""
    payload = keys.config_payload(config)
    payload.pop("runtime")
    return f"{config.name}-{keys.key_of(payload)[:6]}"


def lay_out(store: Store, name: str, titles: list[str], ledger: list[Entry], report: Path | None) -> Path:
    """`runs/<name>/`: a link for each step's output in the order of the DAG (`titles`), the ledger, a link to
    the best model so far; of a run that came to its report that report with the run in it: costs, lineage, steps."""
    place = {title: i for i, title in enumerate(titles, 1)}
    ledger.sort(key=lambda entry: place[entry.title])
    store.link_run(name, {f"{place[e.title]:03}-{e.stage}{_slug(e.label)}": e.digest for e in ledger if e.digest})
    steps = [entry.as_json() for entry in ledger]
    store.write_run_file(name, "steps.json", json.dumps(steps, indent=1).encode())
    best = run_facts.best_tree(store, name)
    if best or report:
        store.link_run(name, {runs.BEST: best})
    if report:
        downloaded: list[dict] = []
        with suppress(OSError, ValueError):
            downloaded = list(json.loads((store.root / "runs" / name / "sources.json").read_text()))
        run_part = sections(ledger, lambda entry: store.record(entry.stage, entry.key), downloaded)
        page = (report / "report.html").read_text(encoding="utf-8").replace(STEPS_MARK, run_part)
        store.write_run_file(name, "report.html", page.encode())
        store.write_run_file(name, "report.md", (report / "report.md").read_bytes())
    return store.root / "runs" / name


def card(store: Store, name: str) -> None:
    """The model card of runs/<name>/. Without it the run is complete: whatever fails is a warning in its log."""
    try:
        run_card.write(store, name)
    except Exception as error:
        get_run_logger().warning(
            f"This run has no model card ({one_line(error, 300, kind=True)}); its report and models are whole."
        )


def _slug(label: str) -> str:
    words = "".join(c if c.isalnum() and c.isascii() else " " for c in label.replace("θ", "theta")).split()
    return "".join(f"-{word}" for word in words)
