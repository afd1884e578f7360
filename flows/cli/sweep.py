"""`spinloop sweep`: the variants of a profile, what they would cost, and one report of them all."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

from flows.cli.terminal import print_markdown
from flows.server import settings
from flows.streams import print_escaped, print_line
from spin_core.config import yaml_reader
from spin_core.errors import BadInput, SpinloopError
from spin_core.estimate.text import span

WHAT = (
    "Run every variant of a profile: each combination of the values of `--over`, `--seeds` times. The variants share "
    "every step that they have in common; one report compares them."
)


def add_command(within: Any, add: Callable) -> None:
    """Put `sweep` under the parser `within`."""
    sub = add(within, "sweep", _sweep, WHAT)
    sub.add_argument("profile", help="path of a YAML file (its section sweep: too), or the name of a profile")
    sub.add_argument(
        "--over", action="append", default=[], metavar="FIELD=A,B,C",
        help="a setting and its values, e.g. finetune.beta=0.05,0.1,0.5 (repeatable: every combination)",
    )  # fmt: skip
    sub.add_argument("--seeds", type=int, default=0, metavar="N", help="trainings of each variant (finetune.seed)")
    sub.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="change a field of the profile for all variants (repeatable)",
    )  # fmt: skip
    sub.add_argument(
        "--at-once", type=int, default=1, metavar="N",
        help="runs side by side, for runs whose stages are on work pools (runtime.pools), which have their own limits",
    )  # fmt: skip
    sub.add_argument("--plan", action="store_true", help="show what each run shares and adds, and compute nothing")
    sub.add_argument("--gpu", default="", metavar="NAME", help="with --plan: cost sheet for this GPU, e.g. h100-80gb")
    sub.add_argument("--gpus", type=int, default=0, metavar="N", help="with --plan: how many of --gpu a node has")
    sub.add_argument("--json", action="store_true", help="one line of JSON on standard output")


def axes(texts: list[str]) -> dict[str, list[Any]]:
    """`finetune.beta=0.05,0.1` as a setting and its values, which are YAML. Raises BadInput for another form."""
    over: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip()
        if not equals or not name or not values.strip():
            raise BadInput(f"--over {text}: write it as field.path=value,value, for example finetune.beta=0.05,0.1.")
        if name in over:
            raise BadInput(f"--over {name} is given twice; put all its values into one.")
        over[name] = yaml_reader.read(f"[{values}]".encode("utf-8", "surrogateescape"), f"--over {name}")
    return over


def _sweep(args: argparse.Namespace) -> None:
    from flows import sweep

    if args.seeds < 0 or args.at_once < 1:
        raise BadInput("--seeds and --at-once: give a number from 1 on.")
    made = sweep.trainings(args.profile, args.settings, axes(args.over), args.seeds)
    if args.plan:
        settings.read()
        _show_plan(args, sweep.planned(made, args.store, args.gpu, args.gpus))
        return
    if args.gpu or args.gpus:
        raise BadInput("--gpu and --gpus are for --plan; give that too, or leave them out.")
    if args.at_once > 1 and not any(one.config.runtime.pools.any_pool() for one in made.all):
        raise BadInput("--at-once: stages of these runs share this machine; name pools for them (runtime.pools).")
    from flows.ending import watched
    from flows.server.embedded import serving

    server = serving(settings.configured_server())
    from flows.execute import spin
    from flows.plan import check

    for one in made.variants:
        check(one.config, args.store, made.base_dir)

    def run(one: sweep.Training) -> dict:
        # Each run is watched by itself: a server that takes no end would end the process with this run's.
        with watched(partial(_left, one.title)) if args.at_once == 1 else nullcontext():
            return cast(dict, spin(one.config, args.store, str(made.base_dir), (*args.settings, *one.changed)))

    with server:
        results = sweep.run_all(made, run, lambda text: print_escaped(text, file=sys.stderr), args.at_once)
    _show(args, made.name, sweep.report(made, args.store, results))


def _left(title: str, outcome: dict | Exception, what: str) -> int:
    said = str(outcome) if isinstance(outcome, Exception) else "its steps are in the store"
    print_escaped(
        f"spinloop: {title}: the server {what}; {said}. The same command goes on from there.", file=sys.stderr
    )
    return getattr(outcome, "exit_code", 1) if isinstance(outcome, Exception) else 1


def _show(args: argparse.Namespace, name: str, outcome: Any) -> None:
    print_markdown(outcome.text, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        facts = {"sweep": name, "page": str(outcome.page), "ran": outcome.ran, "cached": outcome.cached}
        best = outcome.made.best
        label = None if best is None else outcome.made.variants[best].label
        print_line(json.dumps({**facts, "best": label, "failed": outcome.failed}))
    else:
        print_escaped(f"Sweep: {outcome.page}")
    if outcome.failed:
        raise SpinloopError(f"{len(outcome.failed)} runs failed: {'; '.join(outcome.failed)}")


def _show_plan(args: argparse.Namespace, plan: Any) -> None:
    for note in plan.notes:
        print_escaped(f"note: {note}", file=sys.stderr)
    if args.json:
        lines = [
            {"run": one.training.title, "settings": one.training.changes, "seed": one.training.seed}
            | {"steps": one.steps, "cached": one.cached, "shared": one.shared, "adds": one.adds}
            for one in plan.shares
        ]
        print_line(json.dumps(lines))
        return
    width = max(len(one.training.title) for one in plan.shares)
    print_escaped(f"{'run':<{width}}  steps  cached  shared  adds  time added")
    for one in plan.shares:
        seconds = [line.seconds for line in one.lines]
        time = span(None if None in seconds else sum(filter(None, seconds))) if one.adds else ""
        counts = f"{one.steps:>5}  {one.cached:>6}  {one.shared:>6}  {one.adds:>4}"
        print_escaped(f"{one.training.title:<{width}}  {counts}  {time:>10}")
    adds = sum(one.adds for one in plan.shares)
    print_escaped(
        f"{len(plan.shares)} runs: {adds} steps would run, {sum(one.shared for one in plan.shares)} are shared."
    )
    if plan.costs:
        print_escaped("\n".join(["", *plan.costs]))
