"""`spinloop costs`: what the runs of a store computed and what the cache saved, by profile, stage and week."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.cli.terminal import print_markdown
from flows.streams import print_escaped, print_line
from spin_core.analysis import account
from spin_core.errors import BadInput, StoreError
from spin_core.report import costs_page
from spin_core.report.stored_run import executions
from spin_core.store.opening import open_store
from spin_core.store.s3 import verify as remote_verify
from spin_core.store.s3.remote import RemoteStore
from spin_core.store.store import Store
from spin_core.store.usage import usage


def add_command(within: Any, add: Callable) -> None:
    """Put `costs` under the parser `within`."""
    text = "Sum up all runs of a store: hours, tokens and disk by profile, stage and week, and what the cache saved."
    sub = add(within, "costs", _costs, text)
    sub.add_argument(
        "--since", default="", metavar="DATE", help="only what was started on this day or after, 2026-11-01"
    )
    sub.add_argument("--out", default="", metavar="FILE", help="where its page is written (default: runs/costs.html)")
    sub.add_argument("--json", action="store_true", help="one line of JSON on standard output")


def disk_of(store: Store) -> dict[str, int]:
    """Bytes by profile, and in all under the empty name."""
    used = remote_verify.usage(store, None) if isinstance(store, RemoteStore) else usage(store)
    return {"": used.total} | {line.name: line.bytes for line in used.profiles}


def _costs(args: argparse.Namespace) -> None:
    store = open_store(args.store, create=False, read_only=True)
    listed = executions(store)
    if args.since:
        listed = account.since(listed, args.since)
    if not listed:
        when = f" since {args.since}" if args.since else ""
        raise BadInput(f"{args.store}: no run was started here{when}, so there is nothing to sum up.")
    made, disk = account.account(listed), disk_of(store)
    if args.json:
        print_line(json.dumps(account.as_json(made) | {"disk": disk}))
        return
    place = Path(args.out).expanduser() if args.out else store.root / "runs" / "costs.html"
    try:
        place.write_text(costs_page.page(made, args.store, disk), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{place}: cannot be written ({error.strerror}); name a file with --out.") from None
    print_markdown(costs_page.text(made, disk))
    print_escaped(f"Costs: {place.resolve()}")
