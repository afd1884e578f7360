"""`spinloop report`: a run's table and where its page lies, two runs side by side, and what differs from a preset."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flows.cli.terminal import print_markdown
from flows.streams import print_escaped
from spin_core.analysis.format import escape_markdown, markdown_table
from spin_core.analysis.profile_diff import differences, preset, sentence
from spin_core.analysis.run_comparison import compare
from spin_core.errors import BadInput, StoreError
from spin_core.report import compare_page, watch
from spin_core.report.run_facts import STEPS, read_steps
from spin_core.report.stored_run import find, reports_of, side_of
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
    folder = find(store, args.run)
    if args.preset:
        print_markdown(_ledger(store, folder, args.preset))
        return
    print_markdown((folder / "report.md").read_text(encoding="utf-8"))
    print_escaped(f"Report: {folder / 'report.html'}")
    if said := watch.last_look(folder):
        print_escaped(said)


def _ledger(store: Store, folder: Path, name: str) -> str:
    other = preset(name)
    *_, report = reports_of(store, folder, read_steps(folder / STEPS))
    changed = differences(report.payload["config"]["profile"], other)
    lines = [["setting", "this run", name]] + [[one.setting, one.here, one.there] for one in changed]
    table = markdown_table([[escape_markdown(cell, 140) for cell in line] for line in lines])
    return sentence(changed, name) + (f"\n\n{table}" if changed else "")


def _compared(store: Store, runs: Sequence[str], out: str = "") -> tuple[str, Path]:
    """The comparison as text, and where its page lies: `out`, else runs/compare-A-B.html. Raises BadInput for a run
    that is not there or has no report, and for runs without a shared row; StoreError where nothing can be written."""
    with store.using():
        sides = [side_of(store, folder) for folder in [find(store, name) for name in runs]]
        made = compare(sides[0], sides[1])
    place = Path(out).expanduser() if out else store.root / "runs" / f"compare-{sides[0].name}-{sides[1].name}.html"
    try:
        place.write_text(compare_page.page(made), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{place}: cannot be written ({error.strerror}); name a file with --out.") from None
    return compare_page.text(made), place.resolve()
