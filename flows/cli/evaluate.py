"""`spinloop evaluate`: models of runs of the store with another `evaluate` or `harness` setting, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from flows.cli.terminal import print_error, print_markdown, print_states
from flows.server import settings
from flows.streams import print_escaped, print_line
from spin_core.analysis.format import ran_text
from spin_core.errors import SpinloopError
from spin_core.store.opening import open_store

WHAT = (
    "Measure the models of runs again, with another evaluate or harness setting; nothing is trained, no pairs are "
    "generated, and what the store has is not computed again. One page sets all of them side by side."
)


def add_command(within: Any, add: Callable) -> None:
    """Put `evaluate` under the parser `within`."""
    sub = add(within, "evaluate", _evaluate, WHAT)
    sub.add_argument("runs", nargs="+", metavar="RUN", help="name of a run that has a report, or latest")
    sub.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="a field of evaluate, harness or runtime, e.g. harness.tasks=[sciq] (repeatable); else as each run has it",
    )  # fmt: skip
    sub.add_argument("--best", action="store_true", help="only the best model of each run, by its gate")
    sub.add_argument("--models", default="", metavar="θ_1,θ_2", help="only these models of each run (default: all)")
    sub.add_argument(
        "--source", action="append", default=[], metavar="PLACE",
        help="a model that a run began with and the store does not have: its folder or hub id, checked by content "
        "(repeatable)",
    )  # fmt: skip
    sub.add_argument("--plan", action="store_true", help="show what is cached and what would run, and compute nothing")
    sub.add_argument("--json", action="store_true", help="one line of JSON on standard output")


def _evaluate(args: argparse.Namespace) -> None:
    from flows.evaluation import Asked, chosen

    labels = tuple(name for name in args.models.split(",") if name.strip())
    asked = Asked(args.runs, tuple(args.settings), labels, args.best, tuple(args.source))
    if args.plan:
        settings.read()
        _plan(args, asked)
        return
    from flows.ending import watched
    from flows.server.embedded import serving

    server = serving(settings.configured_server())  # before anything is hashed
    from flows.evaluation_run import evaluation

    here = Path.cwd()
    chosen(open_store(args.store, create=False, read_only=True), asked, here)

    def left(outcome: dict | Exception, what: str) -> int:
        if isinstance(outcome, Exception):
            print_error(str(outcome))
        else:
            _show(args, outcome)
        print_escaped(f"note: the Prefect server {what}; the store has all that finished.", file=sys.stderr)
        return getattr(outcome, "exit_code", 1) if isinstance(outcome, Exception) else 0

    with server, watched(left):
        given = (asked.settings, asked.models, asked.best, asked.sources, str(here))
        outcome = cast(dict, evaluation(asked.runs, args.store, *given))
    _show(args, outcome)
    if failed := outcome["models"]["failed"]:
        raise SpinloopError(f"{failed} of the models could not be measured: {'; '.join(outcome['lacks'])}")


def _show(args: argparse.Namespace, outcome: dict) -> None:
    for note in outcome["notes"]:
        print_escaped(f"note: {note}", file=sys.stderr)
    print_markdown(outcome["text"], file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print_line(json.dumps({name: value for name, value in outcome.items() if name != "text"}))
    else:
        print_escaped(f"{ran_text(outcome['ran'], outcome['cached'])}.")
        print_escaped(f"Evaluation: {outcome['page']}")


def _plan(args: argparse.Namespace, asked: Any) -> None:
    from flows.evaluation import chosen, looked_up

    store, here = open_store(args.store, create=False, read_only=True), Path.cwd()
    models = looked_up(store, *chosen(store, asked, here), here)
    for note in store.notes:
        print_escaped(f"note: {note}", file=sys.stderr)
    lines = []
    for model in models:
        for part in model.parts:
            state, entry = "left out" if part.lacks else part.entry.state, part.entry
            lines.append({"run": model.run.facts.name, "model": model.step.label, "stage": entry.stage, "state": state,
                          "key": entry.key, "why": part.lacks or entry.why})  # fmt: skip
    if args.json:
        print_line(json.dumps(lines))
        return
    print_states([(one["state"], f"{one['run']}, {one['stage']}[{one['model']}]", one["why"] or one["key"][:6])
                  for one in lines], 9, 0)  # fmt: skip
    counts = Counter(one["state"] for one in lines)
    took = sum(model.step.seconds or 0.0 for model in models if _would_run(model))
    print_escaped(f"{counts['cached']} cached, {counts['would run']} would run, {counts['left out']} left out.")
    if took:
        print_escaped(f"The runs' own evaluations of the models that would be evaluated took {took:.1f} s in all.")


def _would_run(model: Any) -> bool:
    return any(part.entry.stage == "evaluate" and part.entry.state != "cached" for part in model.parts)
