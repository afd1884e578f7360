"""docs/commands.md: every command with its arguments and options, from the command line's own parsers."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterable, Iterator

from flows.cli import __main__ as cli
from flows.cli import overview
from tests.architecture.reference.text import COMMAND, code, filled, table

EVERYWHERE = ("--store", "--help")


def page() -> str:
    """The page's Markdown: a part for each command, in the order of `spinloop --help`."""
    parser = cli._parser()
    parts = [_head(parser)]
    order = [name for task in overview.OVERVIEW.values() for name in task]
    for name, sub in sorted(commands(parser), key=lambda one: order.index(one[0].split()[0])):
        lines = [_line(one) for one in sub._actions if not set(one.option_strings) & set(EVERYWHERE)]
        options = table(("argument or option", "default", "what it does"), lines)
        parts.append(f"## `spinloop {name}`\n\n{filled(sub.description or '')}\n\n{options}")
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command by its words, commands of commands in its place."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                inner = list(commands(sub, f"{before}{name} "))
                yield from inner or [(f"{before}{name}", sub)]


def _head(parser: argparse.ArgumentParser) -> str:
    _, sub = next(commands(parser))
    store = next(one for one in sub._actions if "--store" in one.option_strings)
    said = (
        f"Generated from the command line (`{COMMAND}`; a test says when it is stale). Each command has `--help` and "
        f"`--store {store.metavar}`: {_help(store)}. The fields that `--set` takes are in [settings](settings.md)."
    )
    return f"# Every command\n\n{filled(said)}\n\n{filled((inspect.getdoc(cli) or '').split(chr(10) * 2)[1])}\n"


def _line(action: argparse.Action) -> list[str]:
    """Flags or the argument's name, the default, and the help text."""
    given = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar
    value = "" if action.nargs == 0 else given or _either(action.choices) or action.dest.upper()
    if action.option_strings:
        shown = ", ".join(action.option_strings) + (f" {value}" if value else "")
    else:
        shown = given or action.dest
        shown = {"?": f"[{shown}]", "*": f"[{shown} …]", "+": f"{shown} …"}.get(str(action.nargs), shown)
    default = "" if action.default in (None, "", False, [], argparse.SUPPRESS) else code(str(action.default))
    if not default and (action.required and action.nargs not in ("*", "?")):
        default = "required"
    return [code(shown.replace("|", "/")), default, _help(action)]  # a | in code is shown otherwise by each host


def _either(choices: Iterable[object] | None) -> str:
    return f"{{{','.join(map(str, choices))}}}" if choices else ""


def _help(action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default}
