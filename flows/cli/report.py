"""`spinloop report`: a run's table and where its page lies, two runs side by side, and what differs from a preset."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spin_core.errors import BadInput
from spin_core.store.opening import open_store
from spin_core.store.store import Store


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
    from flows.cli.compare import compared, find

    store = open_store(args.store, create=False, read_only=True)
    if args.compare:
        if args.run or args.preset:
            raise BadInput("--compare takes two runs and neither a third one nor --preset; leave that out.")
        text, place = compared(store, args.compare, args.out)
        print(text)
        print(f"\nComparison: {place}")
        return
    if args.out:
        raise BadInput("--out names the page of --compare RUN_A RUN_B; give that too, or leave --out out.")
    folder = find(store, args.run)
    if args.preset:
        print(_ledger(store, folder, args.preset))
        return
    print((folder / "report.md").read_text(encoding="utf-8"))
    print(f"Report: {folder / 'report.html'}")


def _ledger(store: Store, folder: Path, name: str) -> str:
    from flows.cli.compare import report_record
    from spin_core.analysis.format import escape_markdown, markdown_table
    from spin_core.analysis.profile_diff import differences, preset, sentence

    other = preset(name)
    changed = differences(report_record(store, folder).payload["config"]["profile"], other)
    lines = [["setting", "this run", name]] + [[one.setting, one.here, one.there] for one in changed]
    table = markdown_table([[escape_markdown(cell, 140) for cell in line] for line in lines])
    return sentence(changed, name) + (f"\n\n{table}" if changed else "")
