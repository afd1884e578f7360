"""`spinloop report`: a run's table and where its page lies, two runs side by side, and what differs from a preset."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.cli.terminal import print_markdown
from flows.streams import print_escaped
from spin_core.analysis.costs import costs
from spin_core.analysis.format import escape_markdown, markdown_table
from spin_core.analysis.profile_diff import differences, preset, sentence
from spin_core.analysis.results import read_model
from spin_core.analysis.run_comparison import Side, compare, harness_items
from spin_core.analysis.verdict import best_of
from spin_core.errors import BadInput, StoreError
from spin_core.job import Entry
from spin_core.report import compare_page
from spin_core.report.run import facts_of
from spin_core.report.run_facts import STEPS, read_steps
from spin_core.store.keys import KeyPayload
from spin_core.store.opening import open_store
from spin_core.store.record import Record
from spin_core.store.runs import RUN
from spin_core.store.store import Store

TREES = ("evaluate", "finetune", "gather", "harness", "gate", "score")


def add_command(within: Any, add: Callable) -> None:
    """Put `report` under the parser `within`."""
    sub = add(within, "report", _report, "Print a run's table and the path of its report, or compare two runs.")
    sub.add_argument("run", nargs="?", default="", help="name of a run (default: the latest)")
    sub.add_argument(
        "--compare", nargs=2, metavar=("RUN_A", "RUN_B"),
        help="two runs side by side: settings, models on the same held-out rows with intervals, costs",
    )  # fmt: skip
    sub.add_argument("--out", default="", metavar="FILE", help="where --compare writes its page")
    sub.add_argument(
        "--preset", default="", metavar="PROFILE",
        help="instead list every setting in which the run differs from a profile, such as zephyr-7b (the paper)",
    )  # fmt: skip


def _report(args: argparse.Namespace) -> None:
    store = open_store(args.store, create=False, read_only=True)
    if args.compare:
        if args.run or args.preset:
            raise BadInput("--compare takes two runs and neither a third one nor --preset; leave that out.")
        text, place = _compared(store, args.compare, args.out)
        print_markdown(text)
        print_escaped(f"\nComparison: {place}")
        return
    if args.out:
        raise BadInput("--out names the page of --compare RUN_A RUN_B; give that too, or leave --out out.")
    folder = _find(store, args.run)
    if args.preset:
        print_markdown(_ledger(store, folder, args.preset))
        return
    print_markdown((folder / "report.md").read_text(encoding="utf-8"))
    print_escaped(f"Report: {folder / 'report.html'}")


def _ledger(store: Store, folder: Path, name: str) -> str:
    other = preset(name)
    *_, report = _reports(store, folder, read_steps(folder / STEPS))
    changed = differences(report.payload["config"]["profile"], other)
    lines = [["setting", "this run", name]] + [[one.setting, one.here, one.there] for one in changed]
    table = markdown_table([[escape_markdown(cell, 140) for cell in line] for line in lines])
    return sentence(changed, name) + (f"\n\n{table}" if changed else "")


def _compared(store: Store, runs: Sequence[str], out: str = "") -> tuple[str, Path]:
    """The comparison as text, and where its page lies: `out`, else runs/compare-A-B.html. Raises BadInput for a run
    that is not there or has no report, and for runs without a shared row; StoreError where nothing can be written."""
    with store.using():
        sides = [_side(store, folder) for folder in [_find(store, name) for name in runs]]
        made = compare(sides[0], sides[1])
    place = Path(out).expanduser() if out else store.root / "runs" / f"compare-{sides[0].name}-{sides[1].name}.html"
    try:
        place.write_text(compare_page.page(made), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{place}: cannot be written ({error.strerror}); name a file with --out.") from None
    return compare_page.text(made), place.resolve()


def _find(store: Store, name: str) -> Path:
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


def _side(store: Store, folder: Path) -> Side:
    """A run as its last report saw it. Raises BadInput where something of it is no longer in the store."""
    try:
        steps = read_steps(folder / STEPS)
    except (OSError, ValueError):
        raise BadInput(f"{folder / 'steps.json'}: not the steps of a run; run its profile again.") from None
    payload = _reports(store, folder, steps)[-1].payload
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


def _reports(store: Store, folder: Path, steps: list[Entry]) -> list[Record]:
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
