"""`spinloop report --compare RUN_A RUN_B`: reads two runs of a store, writes the page that sets them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spin_core.analysis.costs import costs
from spin_core.analysis.results import ModelResults, read_model
from spin_core.analysis.run_comparison import Side, compare, harness_items
from spin_core.analysis.verdict import best_of
from spin_core.errors import BadInput, StoreError
from spin_core.report import compare_page
from spin_core.report.run import facts_of
from spin_core.report.run_facts import STEPS, read_steps
from spin_core.store.keys import KeyPayload
from spin_core.store.record import Record
from spin_core.store.runs import RUN
from spin_core.store.store import Store

TREES = ("evaluate", "finetune", "gather", "harness", "gate")


def compared(store: Store, runs: Sequence[str], out: str = "") -> tuple[str, Path]:
    """The comparison as text, and where its page lies: `out`, else runs/compare-A-B.html. Raises BadInput for a run
    that is not there or has no report, and for runs without a shared row; StoreError where nothing can be written."""
    with store.using():
        sides = [side(store, folder) for folder in [find(store, name) for name in runs]]
        made = compare(sides[0], sides[1])
    place = Path(out).expanduser() if out else store.root / "runs" / f"compare-{sides[0].name}-{sides[1].name}.html"
    try:
        place.write_text(compare_page.page(made), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{place}: cannot be written ({error.strerror}); name a file with --out.") from None
    return compare_page.text(made), place.resolve()


def find(store: Store, name: str) -> Path:
    """The folder of a run that has a report; an empty name or `latest` is the latest. Raises BadInput."""
    folder = store.root / "latest" if name in ("", "latest") else store.root / "runs" / name
    inside = folder.name == "latest" or RUN.fullmatch(name)
    if inside and (folder / "report.md").is_file():
        return folder.resolve()
    runs = sorted(path.name for path in (store.root / "runs").iterdir() if path.is_dir())
    ended = [one for one in runs if (store.root / "runs" / one / "report.md").is_file()]
    if inside and name in runs:
        raise BadInput(f"{name}: this run has not come to a report; run its profile again, then ask for it.")
    raise BadInput(
        f"{name or 'latest'}: no report of such a run in {store.root.parent}; runs there: {', '.join(ended) or 'none'}."
    )


def side(store: Store, folder: Path) -> Side:
    """A run as its last report saw it. Raises BadInput where something of it is no longer in the store."""
    try:
        steps = read_steps(folder / STEPS)
    except (OSError, ValueError):
        raise BadInput(f"{folder / 'steps.json'}: not the steps of a run; run its profile again.") from None
    records = {id(step): store.record(step.stage, step.key) for step in steps if step.key}
    reports = [record for step in steps if step.stage == "report" and (record := records.get(id(step)))]
    if not reports:
        raise BadInput(f"{folder.name}: the record of its report is not in the store; run its profile again.")
    payload = reports[-1].payload
    models, items = [], {}
    for line in payload["config"]["rows"]:
        trees = {name: _tree(store, payload, name, line.get(name, -1), folder.name) for name in TREES}
        models.append(read_model(line["label"], line["kind"], line["iteration"], *trees.values()))
        items[line["label"]] = harness_items(trees["harness"])
    cost = costs(steps, lambda step: facts_of(records.get(id(step))))
    return Side(folder.name, payload["config"]["profile"], models, _best(models), cost, items)


def report_record(store: Store, folder: Path) -> Record:
    """The record of a run's last report. Raises BadInput where there is none."""
    steps = [step for step in read_steps(folder / STEPS) if step.stage == "report" and step.key]
    kept = [record for step in steps if (record := store.record("report", step.key))]
    if not kept:
        raise BadInput(f"{folder.name}: the record of its report is not in the store; run its profile again.")
    return kept[-1]


def _tree(store: Store, payload: KeyPayload, name: str, index: int, run: str) -> Path | None:
    if index < 0:
        return None
    tree = store.tree(payload["inputs"][name][index])
    if not tree.is_dir():
        raise BadInput(f"{run}: an output of {name} is no longer in the store; run its profile again.")
    return tree


def _best(models: list[ModelResults]) -> str:
    """Label of the run's best model; without a gate's decision of the last one."""
    players = [model for model in models if model.kind != "control"] or models
    k = best_of((model.decision for model in players), len(players))
    return players[-1 if k is None else k].label
