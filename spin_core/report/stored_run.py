"""A run of the store by its name, and what its models did as its last report saw them, for comparisons and sweeps.

Is not: the comparison (`spin_core.analysis.run_comparison`), nor the facts of runs/<name>/ alone (`run_facts`).
"""

from __future__ import annotations

from pathlib import Path

from spin_core.analysis import account
from spin_core.analysis.account import Execution
from spin_core.analysis.costs import Costs, costs
from spin_core.analysis.results import read_model
from spin_core.analysis.run_comparison import Side, harness_items
from spin_core.analysis.verdict import best_of
from spin_core.errors import BadInput
from spin_core.job import Entry
from spin_core.report.run import facts_of
from spin_core.report.run_facts import STEPS, read_steps, run_names
from spin_core.store.keys import KeyPayload
from spin_core.store.record import Record
from spin_core.store.runs import RUN
from spin_core.store.store import Store
from spin_core.store.usage import profile_of

TREES = ("evaluate", "finetune", "gather", "harness", "gate", "score")


def find(store: Store, name: str) -> Path:
    """The folder of a run that has a report; an empty name or `latest` is the latest. Raises BadInput."""
    folder = store.root / "latest" if name in ("", "latest") else store.root / "runs" / name
    inside = folder.name == "latest" or RUN.fullmatch(name)
    if inside and (folder / "report.md").is_file():
        return folder.resolve()
    runs = run_names(store)
    ended = [one for one in runs if (store.root / "runs" / one / "report.md").is_file()]
    if inside and name in runs:
        raise BadInput(f"{name}: this run has not come to a report; run its profile again, then ask for it.")
    raise BadInput(
        f"{name or 'latest'}: no report of such a run in {store.root.parent}; runs there: {', '.join(ended) or 'none'}."
    )


def side_of(store: Store, folder: Path) -> Side:
    """A run as its last report saw it. Raises BadInput where something of it is no longer in the store."""
    try:
        steps = read_steps(folder / STEPS)
    except (OSError, ValueError):
        raise BadInput(f"{folder / 'steps.json'}: not the steps of a run; run its profile again.") from None
    payload = reports_of(store, folder, steps)[-1].payload
    models, items = [], {}
    for line in payload["config"]["rows"]:
        trees = {name: _tree(store, payload, name, line.get(name, -1), folder.name) for name in TREES}
        models.append(read_model(line["label"], line["kind"], line["iteration"], *trees.values()))
        items[line["label"]] = harness_items(trees["harness"])
    players = [model for model in models if model.kind != "control"] or models
    k = best_of((model.decision for model in players), len(players))
    best = players[-1 if k is None else k].label  # without a gate's decision the last one
    cost = costs(steps, lambda step: facts_of(store.record(step.stage, step.key) if step.key else None))
    return Side(folder.name, payload["config"]["profile"], models, best, cost, items)


def executions(store: Store) -> list[Execution]:
    """Every time that a run of the store was started, oldest first. Raises BadInput for a damaged file."""

    def ledger(file: Path) -> tuple[str, Costs] | None:
        try:
            steps = read_steps(file)
        except (OSError, ValueError, BadInput):
            return None
        facts = {id(step): facts_of(store.record(step.stage, step.key) if step.key else None) for step in steps}
        return profile_of(file.parent.name), costs(steps, lambda step: facts[id(step)])

    return account.read(store.root / "runs", ledger)


def reports_of(store: Store, folder: Path, steps: list[Entry]) -> list[Record]:
    """The records of a run's reports, the last one last. Raises BadInput where there is none."""
    keyed = [step for step in steps if step.stage == "report" and step.key]
    kept = [record for step in keyed if (record := store.record("report", step.key))]
    if not kept:
        raise BadInput(f"{folder.name}: the record of its report is not in the store; run its profile again.")
    return kept


def _tree(store: Store, payload: KeyPayload, name: str, index: int, run: str) -> Path | None:
    if index < 0:
        return None
    tree = store.tree(payload["inputs"][name][index])
    if not tree.is_dir():
        raise BadInput(f"{run}: an output of {name} is no longer in the store; run its profile again.")
    return tree
