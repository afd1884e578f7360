"""Sentences of the docstrings of Python's standard library: the first three words are the prompt, the rest the answer.

Real text, which nobody wrote for this: read at run time from the files of the Python that runs the stage, parsed and
not imported; no network. In lower case and of few characters, so that a model of 0.1 M weights can learn to spell.
Other versions of Python give other rows: 3.11.7 has 7,471, 3.12.1 about 7,250, 3.13.0 about 7,000, of which 19 in 20
are in the others too; and so do distributions that leave parts of the library out (Debian's 3.11: 6,100). Figures
differ with them.

inputs   none; the files that are read are in the key by their content (`Config.library`)
outputs  `rows.jsonl`: {"prompt", "response"}, each sentence once
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spin_core.config.base import Section
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Inputs, Job

NAME = "docstring_rows"
VERSION = 1
TESTS = {"test", "tests", "idle_test"}
OPENING = 3  # words of a sentence that are its prompt
LONGEST_OPENING, SHORTEST, LONGEST = 23, 11, 70  # characters of a prompt, and of an answer
LEAST = 1000  # rows without which there is nothing to learn
PLAIN = re.compile(r"[a-z ,.'()\-]+")


class Config(Section):
    """What the rows depend on."""

    library: str
    """`digest_of` the library's files."""


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write rows.jsonl; give counts. Raises BadInput where the library has too few docstrings, StageFailed where it is
    not the one of the key."""
    files = library_files()
    if digest_of(files) != config.library:
        raise StageFailed(
            f"{folder()}: the standard library is not the one that this run began with; run it again with one Python, "
            "and not while that is being upgraded"
        )
    unparsed: list[Path] = []
    rows = dict.fromkeys(row for text in docstrings(files, unparsed) for row in rows_of(text))
    if len(rows) < LEAST:
        raise BadInput(
            f"{folder()}: only {len(rows):,} sentences were found in the docstrings of Python's standard library, and "
            f"builtin:docstrings needs {LEAST:,}; take a Python whose library is there as .py files, or another "
            "dataset.path (the profile demo-tasks needs none)."
        )
    with (job.out / "rows.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"prompt": prompt, "response": answer}) + "\n" for prompt, answer in sorted(rows))
    return {"rows": len(rows), "files": len(files), "unparsed": len(unparsed)}


def folder() -> Path:
    """Where this Python has its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def library_files(root: Path | None = None) -> list[Path]:
    """The library's own .py files, without its tests and without what is installed beside them, in order."""
    root, files = root or folder(), list[Path]()
    for name in sorted(sys.stdlib_module_names):
        alone = root / f"{name}.py"
        files += [alone] if alone.is_file() else sorted((root / name).rglob("*.py"))
    return [file for file in files if not TESTS.intersection(file.relative_to(root).parts)]


def digest_of(files: list[Path]) -> str:
    """Of the files' content. Their names and places are not in it: they are in no row."""
    each = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    return hashlib.sha256(each).hexdigest()


def docstrings(files: list[Path], unparsed: list[Path]) -> Iterator[str]:
    """Those of modules, classes and functions. Files that this Python cannot parse have none and are added to
    `unparsed`."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in files:
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):
            unparsed.append(file)
            continue
        for node in ast.walk(tree):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                yield text


def rows_of(docstring: str) -> Iterator[tuple[str, str]]:
    """Its plain sentences of fit length, cut in two."""
    for paragraph in re.split(r"\n\s*\n", docstring.lower()):
        for sentence in re.split(r"(?<=[.!?]) ", " ".join(paragraph.split())):
            words = re.sub(r'["`*]', "", sentence).split()
            prompt, answer = " ".join(words[:OPENING]), " ".join(words[OPENING:])
            fits = len(words) >= 2 * OPENING and len(prompt) <= LONGEST_OPENING and SHORTEST <= len(answer) <= LONGEST
            if fits and PLAIN.fullmatch(f"{prompt} {answer}"):
                yield prompt, answer
