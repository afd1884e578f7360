"""`spinloop store …`: list, show, explain, fetch, du, verify, pack, gc; what it keeps is in keep.py, steps computed
again in recompute.py."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from flows import live
from flows.cli import keep, recompute
from flows.keeping import waiting_text
from flows.streams import print_escaped
from spin_core.analysis.format import bytes_text, time_text
from spin_core.errors import BadInput, StoreError, printable
from spin_core.store.deltas import left_out
from spin_core.store.explain import compare
from spin_core.store.gc import gc
from spin_core.store.keys import key_of, take_of, with_take
from spin_core.store.opening import open_store
from spin_core.store.pack import pack
from spin_core.store.record import Record
from spin_core.store.runs import LABEL, RUN
from spin_core.store.s3 import gc as remote_gc
from spin_core.store.s3 import verify as remote_verify
from spin_core.store.s3.remote import RemoteStore
from spin_core.store.store import Store
from spin_core.store.takes import in_words
from spin_core.store.usage import UsageLine, usage
from spin_core.store.verify import verify
from tasks.runner.progress import Progress


def add_commands(within: Any, add: Callable) -> None:
    """Put the store's commands under the parser `within`."""
    ls = add(within, "ls", _ls, "List what the store has: key, stage, size, seconds it took, output.")
    ls.add_argument("stage", nargs="?", help="only this stage")
    for name, command, text in (
        ("show", _show, "Print a record: what its key was made of, its files, its facts."),
        ("explain", _explain, "Say which setting or input a step differs in from the nearest other of its stage."),
    ):
        add(within, name, command, text).add_argument("key", help="a key, or enough of its beginning")
    fetch = add(within, "fetch", _fetch, "Print the folder of an output; of a store on S3 it is brought here first.")
    fetch.add_argument("what", help="RUN/LABEL as in `runs/` (demo-3fa9c1/best), or a key, or enough of its beginning")
    du = add(within, "du", _du, "What the store takes of the disk, by stage and by run.")
    du.add_argument("run", nargs="?", help="only the outputs of this run of `runs/`")
    check = add(within, "verify", _verify, "Check records, names and sizes; exit code 1 if anything is damaged.")
    check.add_argument("--deep", action="store_true", help="hash every file too (about 1.5 GB a second)")
    recompute.add_options(check)
    small = add(
        within, "pack", _pack, "Keep the weights of models in the middle of runs as differences to the ones before."
    )
    small.add_argument("--dry-run", action="store_true", help="only say which models, and what their weights take now")
    clear = add(within, "gc", _gc, "Remove what no record needs and what killed processes left.")
    clear.add_argument("--dry-run", action="store_true", help="only say what would go, and its size")
    clear.add_argument(
        "--keep-runs", type=int, metavar="N",
        help="also remove what neither the N latest runs nor those of --keep need; the best model of every run stays",
    )  # fmt: skip
    clear.add_argument("--keep", action="append", default=[], metavar="RUN", help="keep all of this run of `runs/`")
    clear.add_argument("--quarantine", action="store_true", help="also remove what was damaged and set aside")
    keep.add_options(clear)
    keep.add_commands(within, add)


def _open(args: argparse.Namespace) -> Store:
    return open_store(args.store, create=False, read_only=True)


def _find(store: Store, key: str) -> Record:
    matches = [record for record in store.records() if record.key.startswith(key)]
    if len(matches) == 1:
        return matches[0]
    some = ", ".join(f"{r.stage} {r.key[:12]}" for r in matches[:5]) or "nothing"
    raise BadInput(f"{key}: names {len(matches)} records ({some}); give a key of `spinloop store ls`, or more of it.")


def _ls(args: argparse.Namespace) -> None:
    store = _open(args)
    rows = []
    for record in store.records():
        if args.stage in (None, record.stage):
            label = ", ".join(filter(None, (record.facts.get("label", ""), in_words(take_of(record.payload)))))
            cost = bytes_text(sum(file["size"] for file in record.files)), time_text(record.facts.get("seconds"))
            rows.append((record.key[:12], record.stage, label, *cost, record.digest[:12]))
    if rows:
        _table(("key", "stage", "step", "size", "time", "output"), rows, left=3)
    else:
        print_escaped(f"{args.store} has no step{f' of stage {args.stage}' if args.stage else ''}.")
    _notes(store)


def _show(args: argparse.Namespace) -> None:
    store = _open(args)
    record = _find(store, args.key)
    fields = {name: value for name, value in vars(record).items() if name != "path"}
    text = json.dumps(fields, indent=1, ensure_ascii=False)
    print_escaped(text if printable(text, "\n") == text else json.dumps(fields, indent=1))  # JSON in any case
    fetch = f"`spinloop store fetch {args.key}` brings its files"
    whole = record.path.is_dir() and not left_out(record.path.parents[1], record.digest)
    print_escaped(f"files are in {record.path}" if whole else fetch, file=sys.stderr)  # what is piped on is JSON
    _print_replaced(store, record, sys.stderr)


def _explain(args: argparse.Namespace) -> None:
    store = _open(args)
    record = _find(store, args.key)
    print_escaped(f"{record.stage} {record.key[:12]}: {compare(store, record)}")
    _print_replaced(store, record)
    for name, hubs in (record.facts.get("sources") or {}).items():
        print_escaped(f"{name} came from {', '.join(hubs)}")
    _notes(store)


def _print_replaced(store: Store, record: Record, file: TextIO | None = None) -> None:
    """Say so where runs ask for a later output of the step by now."""
    take = store.takes.read().get(key_of(with_take(record.payload, 0)), 0)
    if take > take_of(record.payload):
        key = key_of(with_take(record.payload, take))
        print_escaped(f"{in_words(take)} since (`--redo … --replace`): runs ask for {key[:12]}", file)


def _fetch(args: argparse.Namespace) -> None:
    store = _open(args)
    store.report = Progress(live.view())
    run, _, label = args.what.partition("/")
    link = store.root / "runs" / run / label
    if label and not (RUN.fullmatch(run) and LABEL.fullmatch(label) and link.is_symlink()):
        raise BadInput(f"{args.what}: no output of a run; give RUN/LABEL of a run in `runs/`, such as {run}/best.")
    digest = link.readlink().name if label else _find(store, run).digest
    if label and not any(record.digest == digest for record in store.records()):
        raise StoreError(f"{args.what}: no record names this output, so it may be anything; run its profile again.")
    tree = store.tree(digest)
    if tree.is_dir():
        tree = store.input_tree(digest)
    _notes(store)
    if not tree.is_dir():
        raise StoreError(f"{args.what}: its output is not whole in {args.store}; run its profile again.")
    print_escaped(str(tree))


def _du(args: argparse.Namespace) -> None:
    store = _open(args)
    used = remote_verify.usage(store, args.run) if isinstance(store, RemoteStore) else usage(store, args.run)
    if args.run and not used.runs:
        raise BadInput(f"{args.run}: there is no such run in {args.store}; `spinloop store du` lists them.")
    _table(("stage", "outputs", "size"), [(*_cells(line),) for line in used.stages])
    print_escaped("")
    if used.runs:
        _table(("run", "outputs", "size", "only here"), [(*_cells(r), bytes_text(r.only)) for r in used.runs])
        print_escaped("")
    if used.other:
        _table(("besides", "entries", "size"), [(*_cells(line),) for line in used.other])
        print_escaped("")
    print_escaped(f"{bytes_text(used.total)} in all; a file that several outputs share is counted once.")


def _cells(line: UsageLine) -> tuple[str, str, str]:
    return line.name, f"{line.count:,}", bytes_text(line.bytes)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], left: int = 1) -> None:
    """Columns under their heads; the first `left` of them begin at one place, the others end at one."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths[:left], strict=True)]
        cells += [cell.rjust(width) for cell, width in zip(row[left:], widths[left:], strict=True)]
        print_escaped("  ".join(cells))


def _verify(args: argparse.Namespace) -> None:
    if recompute.is_asked(args):
        recompute.verify(args)
        return
    store = _open(args)
    if isinstance(store, RemoteStore):
        problems = remote_verify.verify(store, args.deep, _watched("files"))
    else:
        problems = verify(store, args.deep, _watched("trees"))
    for problem in problems:
        print_escaped(problem)
    if problems:
        many = f"{len(problems)} problem{'s' * (len(problems) > 1)} in {args.store}"
        raise StoreError(f"{many}; damaged steps are set aside and run again when next needed.")
    checked = "are whole" if args.deep else "have the names and sizes that were published (--deep hashes them)"
    print_escaped(f"{args.store}: {sum(1 for _ in store.records())} records and their trees {checked}.")


def _watched(what: str) -> Callable[[list], Iterator]:
    """Gives a list back one by one, and shows how far it is."""
    view = live.view()
    show = Progress(view)

    def track(things: list) -> Iterator:
        for done, one in enumerate(things):
            if view:
                show("store verify", {"label": what, "unit": what, "figures": {}, "done": done, "total": len(things)})
            yield one
        if view and things:
            counts = {"done": len(things), "total": len(things)}
            show("store verify", {"label": what, "unit": what, "figures": {}, **counts, "closed": True})

    return track


def _gc(args: argparse.Namespace) -> None:
    going: dict[str, list[int]] = {}
    store = _open(args)

    if policy := keep.policy_asked(store, args):
        keep.run_policy(store, policy, args.dry_run)
        _notes(store)
        return

    def report(what: str, size: int) -> None:
        going.setdefault(what, []).append(size)

    wanted = (args.keep_runs, args.keep, args.quarantine, args.dry_run, report, None, args.while_used)
    result = remote_gc.gc(store, *wanted) if isinstance(store, RemoteStore) else gc(store, *wanted)
    _notes(store)
    rows = [(what, f"{len(sizes):,}", bytes_text(sum(sizes))) for what, sizes in sorted(going.items())]
    if rows:
        _table(("what", "records and folders", "size"), rows)
        print_escaped("")
    print_escaped(
        f"{'would remove' if args.dry_run else 'removed'} {result.records} records, {result.trees} trees, "
        f"{result.temp} temporary and {result.scratch} scratch folders, {result.quarantine} damaged: "
        f"{bytes_text(result.bytes)}"
    )
    if result.in_use:
        print_escaped(waiting_text(result))


def _pack(args: argparse.Namespace) -> None:
    store = _open(args)
    if isinstance(store, RemoteStore):
        raise BadInput(f"{args.store}: weights are sent there as differences to begin with; there is nothing to pack.")
    store.report = Progress(live.view())
    result = pack(store, args.dry_run)
    _notes(store)
    if not result.models:
        print_escaped(
            f"{args.store}: no model to pack: each is the best or the last of a run, has weights under 1 MiB, was not "
            "trained from one that the store has, or differs from it too much."
        )
    elif args.dry_run:
        print_escaped(f"would pack {result.models} models, whose weights take {bytes_text(result.before)} now")
    else:
        print_escaped(
            f"packed {result.models} models: {bytes_text(result.before)} of weights take {bytes_text(result.after)}. "
            "A step that reads one gets it back, bit for bit; `spinloop store fetch` does too."
        )


def _notes(store: Store) -> None:
    for note in store.notes:
        print_escaped(f"note: {note}", file=sys.stderr)
