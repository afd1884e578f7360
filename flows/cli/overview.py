"""`spinloop --help` on one screen, `spinloop run --help SECTION`, and what a shell's TAB completes."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from typing import Any

from flows.cli import fields
from flows.streams import print_escaped
from spin_core.config.profile import PROFILES

USAGE = "usage: spinloop COMMAND ..."
OVERVIEW = {
    "Begin": {
        "init": "write a commented profile for your model and data",
        "data": "show what a dataset would be read as, before a run pays for it",
        "import": "begin from somebody else's pairs or checkpoint",
    },
    "Run": {
        "plan": "show what would run, what is cached and why, and what it costs",
        "run": "run a profile; what the store has is not computed again",
        "sweep": "run the variants of a profile, which share every common step",
        "join": "take part in a run of several nodes, on each further one",
    },
    "Results": {
        "report": "print a run's table, or set two runs side by side",
        "evaluate": "measure models of runs again with another setting",
        "costs": "hours, tokens and disk of all runs, and what the cache saved",
        "push": "upload a run's model and pairs to the Hugging Face hub",
    },
    "Store": {"store": "look at and tend the artifact store (ls, show, du, gc)"},
    "Server": {"deploy": "put pools, deployments and automations on a Prefect server"},
    "Machine": {"doctor": "say what is there for spinloop, what is missing, how to get it"},
}
"""Command → what it does, by task."""
CLOSING = (
    "`spinloop COMMAND --help` has a command's options, `spinloop run --help` the",
    "sections of a profile. The store is --store DIR, $SPINLOOP_STORE or .spinloop.",
)


class Overview(argparse.ArgumentParser):
    """The command itself: its help is the overview."""

    def format_help(self) -> str:
        lines = [USAGE, "", self.description or "", ""]
        for task, commands in OVERVIEW.items():
            for i, (name, text) in enumerate(commands.items()):
                lines.append(f"{'' if i else task:<8} {name:<8} {text}")
        return "\n".join([*lines, "", *CLOSING, ""])


class SectionHelp(argparse.Action):
    """`--help`, or `--help SECTION`: the options and the list of sections, or one section's fields."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        if values:
            print_escaped(fields.section_help(values))
        else:
            parser.print_help()
        sys.exit(0)


def add_parser(to: Any, name: str, text: str) -> argparse.ArgumentParser:
    """The parser of a command; of one that takes a profile with `--help SECTION`."""
    takes_profile = name in ("run", "plan")
    sub: argparse.ArgumentParser = to.add_parser(
        name, help=text, description=textwrap.fill(text, fields.width()), add_help=not takes_profile,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    if takes_profile:
        help_ = sub.add_argument(
            "-h", "--help", nargs="?", const="", action=SectionHelp, metavar="SECTION", default=argparse.SUPPRESS,
            help="show this and exit; with a section, such as finetune, its fields",
        )  # fmt: skip
        help_.completer = _sections  # type: ignore[attr-defined]
        sub.epilog = fields.sections_help(name)
    return sub


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks what could come next, and exit; does nothing where none asks."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def profiles(prefix: str, **_: Any) -> list[str]:
    """The profiles that come with spinloop, and YAML files."""
    from argcomplete.completers import FilesCompleter

    own = [path.stem for path in PROFILES.glob("*.yaml") if path.stem.startswith(prefix)]
    return [*sorted(own), *FilesCompleter(("yaml", "yml"))(prefix)]


def assignments(prefix: str, **_: Any) -> list[str]:
    """`finetune.beta=` for what begins so; behind the `=` the field's choices."""
    name, equals, _value = prefix.partition("=")
    known = dict(fields.settings())
    if not equals:
        return [f"{path}=" for path in known if path.startswith(prefix)]
    said = fields.choices(known[name].annotation) if name in known else []
    return [f"{name}={choice}" for choice in said]


def _sections(prefix: str, **_: Any) -> list[str]:
    return [path for path, _model in fields.sections() if path.startswith(prefix)]
