"""The command line `spinloop`: init, run, plan, sweep, data, import, report, evaluate, costs, push, deploy, doctor,
and the store's own.

Results for people go to standard output, progress and errors to standard error; `--json` puts one line of JSON on
standard output. Exit codes: 0 done, 1 failed, 2 bad input, 75 a run that SIGTERM ended in order, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import cast

from flows.cli import overview
from flows.cli.terminal import print_error, print_markdown, print_states
from flows.live import put_away
from flows.proxies import keep_loopback_direct
from flows.server import settings
from flows.streams import keep_lines_whole, print_escaped, print_line
from spin_core.analysis.format import ran_text
from spin_core.config.profile import PROFILES, load_profile
from spin_core.errors import BadInput, SpinloopError
from spin_core.job import Entry, title
from spin_core.runtime import meeting
from spin_core.store.opening import named, open_store
from tasks.runner import redo

PLAN = (
    "Show which steps would run, which are cached, and why. Computes nothing but reads and tokenizes a dataset that "
    "the store does not have, to say how many answers are missing; writes nothing to the store."
)
JOIN = (
    "Take part in the stages of a run on node 0 until it ends. They meet in the store, which must lie under the same "
    "path on all nodes. Which node this is, and what the meeting is called, the environment says: SPINLOOP_NODE_RANK "
    "and SPINLOOP_MEETING, or what Kubernetes indexed jobs, Slurm and MPI set."
)


def main(argv: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    if argv is None:
        _use_utf8()
    keep_lines_whole()
    settings.quiet()
    keep_loopback_direct()
    try:
        parser = _parser()
        overview.complete(parser)
        args = parser.parse_args(argv)
        try:
            args.command(args)
        finally:
            put_away()  # before anything is said of how it ended
    except KeyboardInterrupt:
        text = "interrupted; finished steps are in the store, and the same command goes on from there."
        print_error(text)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        known = error if isinstance(error, SpinloopError) else _in_a_sentence(error)
        if known is None:
            raise
        print_error(str(known))
        sys.exit(known.exit_code)


def _use_utf8() -> None:
    """Where the locale's encoding is another, start again in Python's UTF-8 mode, with the terminal's own encoding:
    a file that a profile names as `ü` would not be found, and libraries would read files wrongly."""
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    shown = {} if sys.stdout is None else {"PYTHONIOENCODING": f"{sys.stdout.encoding}:replace"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**shown, **os.environ, "PYTHONUTF8": "1"})  # noqa: S606


def _in_a_sentence(error: Exception) -> SpinloopError | None:
    """The sentence for an error of the current folder, of a name, or of Prefect's client about its server; None for any
    other."""
    try:
        os.getcwd()  # relative names begin there: of the store, of a profile, of Prefect's files
    except OSError as gone:
        return BadInput(f"The current folder cannot be used ({gone.strerror}); `cd` into one that is there.")
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        near = error.object[max(0, error.start - 60) : error.end]
        return BadInput(f"The name of a folder or file is not UTF-8 (…{near}); rename it, or work in another folder.")
    from flows.server.errors import refused

    return refused(error)


def _parser() -> argparse.ArgumentParser:
    parser = overview.Overview(prog="spinloop", description="SPIN as a workflow of cached steps.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)

    def add(to, name: str, command, text: str) -> argparse.ArgumentParser:
        sub = overview.add_parser(to, name, text)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--store", default=os.environ.get("SPINLOOP_STORE", ".spinloop"), type=named, metavar="DIR",
            help="folder of the artifact store, or s3://bucket/prefix (default: $SPINLOOP_STORE or .spinloop)",
        )  # fmt: skip
        return sub

    for name, command, text in (
        ("run", _run, "Run a profile; what the store has is not computed again."),
        ("plan", _plan, PLAN),
    ):
        sub = add(commands, name, command, text)
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        profile = sub.add_argument("profile", help=f"path of a YAML file, or one of: {known}")
        profile.completer = overview.profiles  # type: ignore[attr-defined]
        setting = sub.add_argument(
            "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
            help="change a field of the profile, e.g. finetune.beta=0.5; an empty value takes its default (repeatable)",
        )  # fmt: skip
        setting.completer = overview.assignments  # type: ignore[attr-defined]
        sub.add_argument("--json", action="store_true", help="one line of JSON on standard output")
        if name == "run":
            sub.add_argument(
                "--redo", action="append", default=[], metavar="STAGE[:T]",
                help="compute a step again that is cached, e.g. finetune:0, and compare its bytes (repeatable)",
            )  # fmt: skip
            sub.add_argument(
                "--replace", action="store_true",
                help="with --redo: take the new output where it differs; later runs go on from it, nothing is lost",
            )  # fmt: skip
        if name == "plan":
            sub.add_argument("--gpu", default="", metavar="NAME", help="cost sheet for this GPU, e.g. h100-80gb, l40s")
            sub.add_argument("--gpus", type=int, default=0, metavar="N", help="how many of --gpu a node has")
    from flows.cli import costs, data, evaluate, imports, init, push, report, store, sweep

    for module in (init, sweep, data, imports, report, evaluate, costs, push):
        module.add_command(commands, add)
    add(commands, "join", _join, JOIN)
    add(commands, "doctor", _doctor, "Say what this machine has for spinloop, what is missing, and how to get it.")
    _deploy_options(
        add(commands, "deploy", _deploy, "Put pools, deployments and automations on PREFECT_API_URL's server.")
    )
    within = commands.add_parser("store", help="Look at and tend the artifact store.")
    store.add_commands(within.add_subparsers(required=True, metavar="COMMAND"), add)
    return parser


def _deploy_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--kind", choices=("process", "docker", "kubernetes"), default="process",
        help="where the pools' runs are started (default: process)",
    )  # fmt: skip
    sub.add_argument(
        "--gpus", type=int, metavar="N",
        help="runs at once on spin-gpu (default: what it has; a new pool gets one for each GPU of this machine)",
    )  # fmt: skip
    sub.add_argument("--image", default="", help="image of docker's and kubernetes' runs (default: spinloop:latest)")
    sub.add_argument(
        "--notify", default="", metavar="BLOCK",
        help="a saved notification block, type/name, that gets a notice of each failed run, e.g. slack-webhook/team",
    )  # fmt: skip


def _run(args: argparse.Namespace) -> None:
    config, base_dir = load_profile(args.profile, args.settings)
    redo.parse(args.redo, args.replace).demand(config)
    from flows.ending import watched
    from flows.server.embedded import serving

    url = settings.configured_server()
    server = serving(url)  # before anything else is imported or hashed
    from flows.execute import spin
    from flows.plan import check

    check(config, args.store, base_dir)

    with server, watched(partial(_server_left, args, url)):
        # A State only where it failed: then it raises.
        changed = tuple(args.settings or ())
        outcome = cast(dict, spin(config, args.store, str(base_dir), changed, args.redo, args.replace))
    _show_outcome(args, outcome)


def _server_left(args: argparse.Namespace, url: str | None, outcome: dict | Exception, what: str) -> int:
    """Report what came of a run, and `what` its server did; the exit code."""
    if isinstance(outcome, Exception):
        print_error(str(outcome))
    else:
        _show_outcome(args, outcome)
    where = f"PREFECT_API_URL {url}: the server" if url else "the run's own Prefect server"
    print(f"note: {where} {what} and may show it as Running; the store has all that finished.", file=sys.stderr)
    return getattr(outcome, "exit_code", 1) if isinstance(outcome, Exception) else 0


def _show_outcome(args: argparse.Namespace, outcome: dict) -> None:
    for note in outcome["notes"]:
        print_escaped(f"note: {note}", file=sys.stderr)
    if not outcome["not_started"]:
        table = Path(outcome["folder"], "report.md").read_text(encoding="utf-8")
        print_markdown(table, file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print_line(json.dumps(outcome))
    elif said := outcome["not_started"]:
        print_escaped(f"{said}\nThe last run that trained: {outcome['report']}")
    else:
        print(f"{ran_text(outcome['ran'], outcome['cached'])}. Run: {outcome['run']}")
        print(f"Report: {outcome['report']}")


def _plan(args: argparse.Namespace) -> None:
    config, base_dir = load_profile(args.profile, args.settings)
    settings.read()
    from flows.plan import costed, planned

    if args.json:
        made = planned(config, args.store, base_dir)
    else:
        made, costs = costed(config, args.store, base_dir, args.gpu, args.gpus)
    for note in made.notes:
        print_escaped(f"note: {note}", file=sys.stderr)
    if args.json:
        print_line(json.dumps([entry.as_json() for entry in made.ledger]))
        return
    if made.ledger:
        _print_ledger(made.ledger)
    if made.new:
        print_markdown(made.new)
    print(made.decoders)
    if costs.lines:
        print("", *costs.lines, sep="\n")
    if costs.misfit and costs.certain:
        raise BadInput(costs.misfit)
    if costs.misfit:
        print(f"This does not fit: {costs.misfit}")


def _print_ledger(ledger: list[Entry]) -> None:
    print_states(_plan_lines(ledger), 9, 0)
    cached = sum(entry.state == "cached" for entry in ledger)
    print(f"{cached} cached, {len(ledger) - cached} would run.")


def _plan_lines(ledger: list[Entry]) -> list[tuple[str, str, str]]:
    """(state, title, description) of each step for people; the shards of one iteration are one line."""
    lines = []

    def line_of(entry: Entry) -> tuple[str, str]:
        return entry.stage, f"iter {entry.place.iteration}" if entry.place.shard else entry.label

    for (stage, place), group in groupby(ledger, line_of):
        entries = list(group)
        first = next((entry for entry in entries if entry.state != "cached"), entries[0])
        if "rows" in first.summary and stage == "generate":
            lines.append((first.state, title(stage, place), _describe_shards(entries, first)))
        else:
            lines.append((first.state, first.title, _cost(first.key, entries) if first.key else first.why))
    return lines


def _describe_shards(entries: list[Entry], first: Entry) -> str:
    rows = sum(entry.summary["rows"] for entry in entries)
    if first.state == "cached":
        return f"{len(entries):,} shards, {rows:,} rows{_cost('', entries)}"
    missing = [entry for entry in entries if entry.state != "cached"]
    would = sum(entry.summary["rows"] for entry in missing)
    return f"{len(missing):,} of {len(entries):,} shards would run, {would:,} of {rows:,} rows: {first.why}"


def _cost(key: str, entries: list[Entry]) -> str:
    seconds = [entry.seconds for entry in entries if entry.seconds is not None]
    replaced = [entry.why for entry in entries if entry.state == "cached" and entry.why]
    said = f", {len(replaced):,} of {len(entries):,} replaced" if len(entries) > 1 else f", {entries[0].why}"
    return key[:6] + (f" {sum(seconds):.1f} s saved" if seconds else "") + (said if replaced else "")


def _join(args: argparse.Namespace) -> None:
    from spin_core.runtime.join import join

    here, opened = meeting.place(), open_store(args.store, read_only=True, runs=False)
    with opened.using():
        count = join(opened.root, here, lambda text: print(text, file=sys.stderr, flush=True))
    print(f"Node 0 is gone; this node took part in {count} launch{'es' * (count != 1)}.")


def _doctor(args: argparse.Namespace) -> None:
    settings.read()
    from flows.cli.doctor import diagnose
    from flows.cli.doctor_server import diagnose_server

    lines = [*diagnose(args.store), *diagnose_server(args.store)]
    print_states(lines, 8, 22, " ")
    if missing := [what for state, what, _ in lines if state == "missing"]:
        raise SpinloopError(f"{', '.join(missing)}: needed and not in order; the lines above say what to do.")


def _deploy(args: argparse.Namespace) -> None:
    settings.read()
    from flows.server.deploy import deploy

    for line in deploy(args.store, args.kind, args.gpus, args.image, args.notify):
        print(line, flush=True)


if __name__ == "__main__":
    main()
