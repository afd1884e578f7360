"""What can be said of a command without running it: its parser takes it, its profile and settings are valid, its make
target, module or file is there."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
from functools import cache

from flows.cli.__main__ import _parser
from spin_core.config.profile import PROFILES, load_profile
from tests.architecture.scan import ROOT
from tests.architecture.test_repository import make_targets
from tests.docs.blocks import inline, plain, words

QUICK = ("costs", "data", "init", "plan", "report", "store")
ALONE = ("costs", "init", "report")
"""Of these the ones that need no argument."""
SHELL = ("export", "eval", "grep", "source")
OTHERS = ("docker", "kubectl", "sbatch", "prefect", "tensorboard", "register-python-argcomplete")
"""Commands of others, which a page may name. Their options nobody checks here."""
PLACEHOLDERS = {"N": "3", "SECTION": "finetune", "…": ""}
"""Standing for a number, a name of a list, or what the page said before. Others any parser takes."""


@cache
def makefile() -> str:
    return (ROOT / "Makefile").read_text(encoding="utf-8")


def variables() -> set[str]:
    """What the Makefile takes from its command line."""
    text = makefile()
    return set(re.findall(r"(?m)^(\w+) \?=", text)) | set(re.findall(r"\$\((?:or )?\$?\(?([A-Z_]+)\b", text))


def parse(arguments: list[str]) -> argparse.Namespace | None:
    """What the command line makes of `spinloop …`; None of `--help`. Raises ValueError where it refuses."""
    given = [PLACEHOLDERS.get(word, word) for word in arguments]
    try:
        return _parser().parse_args([word for word in given if word])
    except SystemExit as end:
        if end.code == 0:
            return None
        raise ValueError(f"spinloop {' '.join(arguments)}: the command line refuses it (see above)") from None


def names_a_command(arguments: list[str]) -> bool:
    """Whether these are names of commands, and options without their values, as a sentence has them: `spinloop store
    gc`, `spinloop report --compare`."""
    parser = _parser()
    for word in arguments:
        choices = next((a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)), {})
        if word in choices:
            parser = choices[word]
        elif word not in parser._option_string_actions:
            return False
    return True


def said_and_run() -> list[str]:
    """The commands in sentences that a test can run: complete ones, of commands that compute no model and talk to
    nobody (doctor asks for the server: tests/flows/test_doctor.py)."""
    kept = set()
    for _, command in inline():
        name, *arguments = command.split()
        quick = name == "spinloop" and arguments[0] in QUICK and "…" not in command and "s3://" not in command
        if quick and (len(arguments) > 1 or arguments[0] in ALONE) and not names_a_group(arguments):
            kept.add(command)
    return sorted(kept)


def names_a_group(arguments: list[str]) -> bool:
    """Whether something is still to come: `spinloop store`, `spinloop store gc --keep-runs`."""
    return arguments[-1] in ("store", "show", "explain", "fetch", "pin", "unpin", "forget", "--compare", "--keep-runs")


def check(command: str) -> None:
    """Raises ValueError, with the command, for one that cannot be right."""
    for part in words(plain(command)):
        while part and re.fullmatch(r"[A-Z_]+=\S*", part[0]):
            part = part[1:]
        if part:
            _check(part, command)


def _check(part: list[str], command: str) -> None:
    name, arguments = part[0], part[1:]
    if name == "spinloop":
        _valid(parse(arguments))
    elif name == "make":
        asked = [word.partition("=")[0] for word in arguments]
        unknown = [word for word in asked if word not in make_targets(makefile()) | variables()]
        if unknown:
            raise ValueError(f"{command}: the Makefile has no {unknown[0]}")
    elif name.startswith("python") and arguments[:1] == ["-m"]:
        if importlib.util.find_spec(arguments[1]) is None:
            raise ValueError(f"{command}: there is no module {arguments[1]}")
    elif name == ".venv/bin/pip":
        _extras(command)
    elif "/" in name:
        if not os.access(ROOT / name, os.X_OK):
            raise ValueError(f"{command}: {name} is no file that can be run")
    elif name not in SHELL + OTHERS and not shutil.which(name):
        raise ValueError(f"{command}: nobody knows the command {name}")


def _valid(args: argparse.Namespace | None) -> None:
    """The profile of a command, where it is one that comes with spinloop, takes the command's settings."""
    profile = getattr(args, "profile", None)
    if profile and (PROFILES / f"{profile}.yaml").is_file():
        load_profile(profile, getattr(args, "settings", None))


def _extras(command: str) -> None:
    """The extras that `pip install -e '.[…]'` names are pyproject's."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    known = set(re.findall(r"(?m)^([\w-]+) = \[", text.partition("[project.optional-dependencies]")[2]))
    for extras in re.findall(r"\.\[([\w,-]+)\]", command):
        if unknown := set(extras.split(",")) - known:
            raise ValueError(f"{command}: pyproject.toml has no extra {min(unknown)}")
