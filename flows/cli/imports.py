"""`spinloop import`: published SPIN pair sets and checkpoints, or a folder of them, as artifacts of the store."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flows.streams import print_escaped, print_line
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.job import Place
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, Step, compute, look_up
from spin_core.sources.resolve import Ref, SourceKind, find, origin
from spin_core.stages import import_model, import_pairs
from spin_core.store.opening import open_store
from spin_core.store.store import Record, Store


class Wanted(NamedTuple):
    """One thing to import: pairs of iteration `t`, or θ_t."""

    kind: SourceKind
    t: int
    place: str

    @property
    def title(self) -> str:
        return f"pairs_{self.t}" if self.kind == "pairs" else f"θ_{self.t}"


def add_command(within: Any, add: Callable) -> None:
    """Put `import` under the parser `within`."""
    sub = add(
        within, "import", _import,
        "Import published SPIN pairs and checkpoints, so that a run can begin at any iteration, or at finetune.",
    )  # fmt: skip
    sub.add_argument(
        "folder", nargs="?", default="",
        help="a folder of pair sets and checkpoints named as published: SPIN_iter0 has the pairs of iteration 0, "
        "…-SPIN-iter0 is θ_1, which they made",
    )  # fmt: skip
    for name, what, example in (
        ("--pairs", "pairs of iteration T", "0=UCLA-AGI/SPIN_iter0"),
        ("--model", "checkpoint as θ_T", "1=UCLA-AGI/zephyr-7b-sft-full-SPIN-iter0"),
    ):
        sub.add_argument(
            name, action="append", default=[], metavar="T=PLACE",
            help=f"{what}: a folder or a hub id, with @revision if you like; e.g. {example} (repeatable)",
        )  # fmt: skip
    sub.add_argument("--json", action="store_true", help="one line of JSON on standard output")


def _import(args: argparse.Namespace) -> None:
    wanted = [_one("pairs", given) for given in args.pairs] + [_one("checkpoint", given) for given in args.model]
    wanted += _of_folder(Path(args.folder)) if args.folder else []
    if not wanted:
        raise BadInput("Nothing to import: name a folder of published sets, or give --pairs T=PLACE, --model T=PLACE.")
    for one in wanted:
        if sum((other.kind, other.t) == (one.kind, one.t) for other in wanted) > 1:
            raise BadInput(f"{one.title} is there twice ({one.place}); name one place for it.")
    store = open_store(args.store)
    imported = []
    with store.using(), Children(1) as children:
        refs = [(one, find(store, one.place, one.kind)) for one in wanted]  # all places are looked at before any work
        for one, ref in refs:
            imported.append(_line(one, ref, *_imported(store, one, ref, children)))
            if not args.json:
                print_escaped("{state:<9} {what:<8} {digest}  {summary}".format(**imported[-1]))
    for note in store.notes:
        print_escaped(f"note: {note}", file=sys.stderr)
    print_line(json.dumps(imported) if args.json else _section(imported))


def _one(kind: SourceKind, given: str) -> Wanted:
    """`T=PLACE`."""
    t, equals, place = given.partition("=")
    if not equals or not re.fullmatch(r"\d{1,2}", t.strip()) or not place:
        option = "--pairs" if kind == "pairs" else "--model"
        raise BadInput(f"{option} {given}: write it as T=PLACE, the number of the iteration first, as in 0={given}.")
    return Wanted(kind, int(t), place)


def _of_folder(folder: Path) -> list[Wanted]:
    """What lies in a folder of published things, by their names. Raises BadInput where there is none."""
    if not folder.is_dir():
        raise BadInput(f"{folder}: there is no such folder; name one of pair sets and checkpoints.")
    wanted = []
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if number := re.search(r"iter_?(\d{1,2})$", inner.name):
            t, model = int(number[1]), (inner / "config.json").is_file()
            wanted.append(Wanted("checkpoint", t + 1, str(inner)) if model else Wanted("pairs", t, str(inner)))
    if not wanted:
        raise BadInput(
            f"{folder}: no folder in it has a name that ends in iter0, iter1, …; name each with --pairs T=PLACE and "
            "--model T=PLACE."
        )
    return wanted


def _imported(store: Store, one: Wanted, ref: Ref, children: Children) -> tuple[Record, str]:
    """The record of the import, and whether it was there."""
    step = (
        Step(import_pairs, f"iter {one.t}, {origin(ref)}", import_pairs.Config(), Place("import", one.t))
        if one.kind == "pairs"
        else Step(import_model, f"{one.title}, {origin(ref)}", import_model.Config(), Place("import", model=one.t))
    )
    keyed = KeyedStep(step, {"source": ref}, store.takes.read())
    if record := look_up(store, keyed):
        return record, "cached"

    def say(event: dict) -> None:
        if "note" in event:
            print_escaped(f"note: {one.title}: {event['note']}", file=sys.stderr)

    record, cached = compute(store, keyed, Runtime(), children, say)
    return record, "cached" if cached else "imported"


def _line(one: Wanted, ref: Ref, record: Record, state: str) -> dict[str, Any]:
    """The line of one import."""
    made = record.facts.get("summary", {})
    if one.kind == "pairs":
        counts = f"{made['train_pairs']:,} train, {made['test_pairs']:,} test pairs"
        left_out = sum(made["rejected"].values())
        counts += f", {left_out:,} rows left out" if left_out else ""
    else:
        counts = f"{made['files']} files, {made['bytes'] / 1e6:,.1f} MB"
    line = {"state": state, "what": one.title, "kind": one.kind, "t": one.t, "key": record.key, "from": ref.hub}
    return {**line, "digest": record.digest, "summary": f"{counts}, {origin(ref)}"}


def _section(imported: list[dict]) -> str:
    """The lines of a profile that begin with what was imported."""
    models = {line["t"]: line["digest"] for line in imported if line["kind"] != "pairs"}
    pairs = {line["t"]: line["digest"] for line in imported if line["kind"] == "pairs"}
    first = max(models, default=0)
    lines = ["", "In a profile, to begin there:"]
    if first:
        lines.append(f"model: {{path: {models[first]}}}  # θ_{first}; leave out sft and control, which are about θ_0")
    lines += ["start:"] + ([f"  iteration: {first}"] if first else [])
    if pairs:
        lines += ["  pairs:  # at least those that the first iteration trains on (`history`)"]
        lines += [f"    {t}: {digest}" for t, digest in sorted(pairs.items())]
    return "\n".join(lines)
