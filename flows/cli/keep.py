"""`spinloop store policy`, `pin`, `unpin`, `forget`, and `gc` by a policy: what a store keeps over a year."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from flows.keeping import clear, find_run, pinned, policy_of, write_policy
from flows.streams import print_escaped
from spin_core.config.yaml_reader import read
from spin_core.errors import BadInput
from spin_core.store import keep
from spin_core.store.opening import open_store
from spin_core.store.store import Store


def add_commands(within: Any, add: Callable) -> None:
    """Put the commands under the parser `within`."""
    text = "Print or change what `gc --policy` and the deployment gc/gc keep: older_than=30d max_size=2TB keep_runs=3."
    sub = add(within, "policy", _policy, text)
    sub.add_argument("settings", nargs="*", metavar="NAME=VALUE", help="`none` takes a setting out")
    for name, command, text in (
        ("pin", _pin, "Keep all of these runs, whatever gc is asked for."),
        ("unpin", _unpin, "Pin them no longer."),
        (
            "forget",
            _forget,
            "Remove what people see of these runs; what only they need goes with a gc that keeps runs.",
        ),
    ):
        add(within, name, command, text).add_argument("runs", nargs="+", metavar="RUN", help="a run of `runs/`")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Put the options of a policy to `store gc`."""
    add = parser.add_argument
    add("--policy", action="store_true", help="as store.yaml says (`spinloop store policy`)")
    add("--older-than", metavar="30d", help="give up runs that were last started longer ago, in days (d) or weeks (w)")
    text = "also while runs use the store: condemn what nobody needs, remove what was condemned before they began"
    add("--while-used", action="store_true", help=text)
    add("--max-size", metavar="2TB", help="give up the oldest runs until all outputs take no more than this")


def policy_asked(store: Store, args: argparse.Namespace) -> keep.Policy | None:
    """The policy of `gc`'s options, those of the command line over store.yaml's; None where none is asked for. Raises
    BadInput."""
    given = {"older_than": args.older_than, "max_size": args.max_size}
    given = {name: value for name, value in given.items() if value is not None}
    if not args.policy and not given:
        return None
    if args.keep or args.quarantine:
        raise BadInput("gc: --keep and --quarantine do not go with a policy; pin the run (`spinloop store pin RUN`).")
    data = policy_of(store) if args.policy else {}
    if args.policy and not data and not given:
        raise BadInput(
            f"{args.store}: there is no policy; write one: spinloop store policy older_than=30d max_size=2TB"
        )
    if args.while_used:
        given["while_used"] = True
    if args.keep_runs is not None:
        given["keep_runs"] = args.keep_runs
    return keep.parse(data | given, "gc")


def run_policy(store: Store, policy: keep.Policy, dry_run: bool) -> None:
    """gc by a policy, with what it did."""
    for line in clear(store, policy, dry_run).lines(dry_run):
        print_escaped(line)


def _open(args: argparse.Namespace) -> Store:
    return open_store(args.store, create=False)


def _policy(args: argparse.Namespace) -> None:
    store = open_store(args.store, create=False, read_only=not args.settings)
    data = policy_of(store)
    for setting in args.settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise BadInput(f"{setting}: write NAME=VALUE, such as older_than=30d.")
        if value != "none":
            data |= {name: read(value.encode(), name)}
        elif data.pop(name, None) is None:
            raise BadInput(f"{setting}: {name} is not set; set are {', '.join(data) or 'none'}.")
    if args.settings:
        write_policy(store, data)
    for name, value in data.items():
        print_escaped(f"{name}: {str(value).lower() if isinstance(value, bool) else value}")
    if not data:
        print_escaped(f"{args.store}: no policy; `spinloop store gc --policy` would refuse.")
    if runs := pinned(store):
        print_escaped(f"pinned: {', '.join(runs)}")


def _pin(args: argparse.Namespace) -> None:
    store = _open(args)
    for run in [find_run(store, name) for name in args.runs]:
        store.write_run_file(run, keep.PINNED, b"pinned\n")
        print_escaped(f"{run}: pinned; no gc takes what it leads to.")


def _unpin(args: argparse.Namespace) -> None:
    store = _open(args)
    for run in [find_run(store, name) for name in args.runs]:
        if run not in pinned(store):
            raise BadInput(f"{run}: is not pinned; pinned are {', '.join(pinned(store)) or 'none'}.")
        store.remove_run_file(run, keep.PINNED)
        print_escaped(f"{run}: pinned no longer.")


def _forget(args: argparse.Namespace) -> None:
    store = _open(args)
    names = [find_run(store, name) for name in args.runs]
    if held := [name for name in names if name in pinned(store)]:
        raise BadInput(f"{held[0]}: is pinned; `spinloop store unpin {held[0]}` first.")
    for name in names:
        store.forget_run(name)
        print_escaped(
            f"{name}: forgotten, its report too; its outputs go with `spinloop store gc --policy` or --keep-runs."
        )
