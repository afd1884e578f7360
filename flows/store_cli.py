"""`spinloop store …`: list, show, explain, verify, gc."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spin_core.errors import BadInput, StoreError
from spin_core.store import verify as checks
from spin_core.store.explain import compare
from spin_core.store.record import Record
from spin_core.store.store import Store


def add_commands(within: Any, add: Callable) -> None:
    """Put the store's commands under the parser `within`."""
    ls = add(within, "ls", _ls, "List what the store has: key, stage, size, seconds it took, output.")
    ls.add_argument("stage", nargs="?", help="only this stage")
    for name, command, text in (
        ("show", _show, "Print a record: what its key was made of, its files, its facts."),
        ("explain", _explain, "Say which setting or input a step differs in from the nearest other of its stage."),
    ):
        add(within, name, command, text).add_argument("key", help="a key, or enough of its beginning")
    add(within, "verify", _verify, "Hash everything in the store; exit code 1 if anything is damaged.")
    gc = add(within, "gc", _gc, "Remove what no record needs and what killed processes left.")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    gc.add_argument("--keep-runs", type=int, metavar="N", help="also remove what none of the N latest runs needs")


def _open(args: argparse.Namespace) -> Store:
    return Store(Path(args.store), create=False)


def _find(store: Store, key: str) -> Record:
    found = [record for record in store.records() if record.key.startswith(key)]
    if len(found) == 1:
        return found[0]
    some = ", ".join(f"{r.stage} {r.key[:12]}" for r in found[:5]) or "nothing"
    raise BadInput(f"{key}: names {len(found)} records ({some}); give a key of `spinloop store ls`, or more of it.")


def _ls(args: argparse.Namespace) -> None:
    store = _open(args)
    for record in store.records():
        if args.stage in (None, record.stage):
            size = sum(file["size"] for file in record.files)
            label, seconds = record.facts.get("label", ""), record.facts.get("seconds", 0)
            print(
                f"{record.key[:12]}  {record.stage:<11} {size / 1e6:9.2f} MB {seconds:8.1f} s  "
                f"{record.digest[:12]}  {label}"
            )
    _notes(store)


def _show(args: argparse.Namespace) -> None:
    record = _find(_open(args), args.key)
    print(
        json.dumps(
            {name: value for name, value in vars(record).items() if name != "path"}, indent=1, ensure_ascii=False
        )
    )
    print(f"files are in {record.path}")


def _explain(args: argparse.Namespace) -> None:
    store = _open(args)
    record = _find(store, args.key)
    print(f"{record.stage} {record.key[:12]}: {compare(store, record)}")
    _notes(store)


def _verify(args: argparse.Namespace) -> None:
    store = _open(args)
    problems = checks.verify(store)
    for problem in problems:
        print(problem)
    if problems:
        raise StoreError(
            f"{len(problems)} problems in {args.store}; damaged steps are set aside and run again when next needed."
        )
    print(f"{args.store}: {sum(1 for _ in store.records())} records and their trees are whole.")


def _gc(args: argparse.Namespace) -> None:
    result = checks.gc(_open(args), keep_runs=args.keep_runs, dry_run=args.dry_run)
    would = "would remove" if args.dry_run else "removed"
    print(
        f"{would} {result.records} records, {result.trees} trees, {result.temp} temporary and "
        f"{result.scratch} scratch folders: "
        f"{result.bytes / 1e6:.2f} MB"
    )


def _notes(store: Store) -> None:
    for note in store.notes:
        print(f"note: {note}", file=sys.stderr)
