"""`spinloop store verify --recompute RUN[:STAGE[:T]]`: steps of a run computed again, and what came of each."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import closing

from flows import live
from flows.streams import print_escaped
from spin_core.analysis.format import plural
from spin_core.errors import BadInput, StoreError
from spin_core.store.opening import open_store
from tasks.runner.progress import Progress


def add_options(parser: argparse.ArgumentParser) -> None:
    """Put the options to `store verify`."""
    parser.add_argument(
        "--recompute", action="append", default=[], metavar="RUN[:STAGE[:T]]",
        help="instead, compute steps of a run again and compare, e.g. latest:gate or latest:finetune:1 (repeatable); "
        "exit code 1 if bytes differ that should be the same",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="runtime.FIELD=VALUE", dest="settings",
        help="with --recompute: a setting of the runtime in place of that of then, e.g. runtime.device=cpu",
    )  # fmt: skip


def is_asked(args: argparse.Namespace) -> bool:
    """Whether steps are to be computed again. Raises BadInput for options that do not go together."""
    if args.settings and not args.recompute:
        raise BadInput("verify: --set goes with --recompute; leave it out.")
    if args.deep and args.recompute:
        raise BadInput("verify: give one of --deep (hashes what is there) and --recompute (computes it again).")
    return bool(args.recompute)


def verify(args: argparse.Namespace) -> None:
    """Print a line for each step; raise StoreError where one came out otherwise that should be the same."""
    from flows.recompute import chosen, recomputed, runtime_settings

    store = open_store(args.store, create=False)
    asked = [chosen(store, name) for name in args.recompute]
    runtime_settings(args.settings)
    show = Progress(live.view())
    store.report = show
    counts: Counter[str] = Counter()
    broken: list[str] = []
    try:
        with store.using():
            for run, steps in asked:
                with closing(recomputed(store, run, steps, args.settings, show)) as lines:
                    for line in lines:
                        counts[line.state] += 1
                        print_escaped(f"{line.state:<8}  {line.entry.title}: {line.text}")
                        broken += [line.entry.title] * bool(line.differing and line.promised)
    finally:
        show.close()
    for note in store.notes:
        print_escaped(f"note: {note}", file=sys.stderr)
    print_escaped(
        f"{plural(sum(counts.values()), 'step')}: {counts['same']} came out the same, {counts['differs']} otherwise, "
        f"{counts['not done']} could not be computed."
    )
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise StoreError(
            f"{', '.join(broken[:3])}{more}: should come out the same on this machine and did not; `spinloop store "
            "show` says which code and versions made the first output."
        )
