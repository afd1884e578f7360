"""Text of the code as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

COMMAND = "python -m tests.architecture.update_reference"


def plain(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def filled(text: str, before: str = "") -> str:
    """As lines of at most 120 columns; `before` begins the first, and the others stand below what follows it."""
    return textwrap.fill(
        plain(text), 120, initial_indent=before, subsequent_indent=" " * len(before), break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def code(text: str) -> str:
    """As code, unless empty."""
    return f"`{text}`" if text else ""


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, in which no text ends a cell; empty without a line."""
    rows = ["| " + " | ".join(plain(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]) + "\n" if rows else ""


def layout(text: str) -> list[tuple[str, str]]:
    """(paths, what they are) of the indented block of a docstring that draws a folder, two spaces or more between them.
    The first line of the block is the folder itself."""
    block = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    parts = [re.split(r"\s{2,}", line) for line in block[1:]]
    return [(", ".join(code(path) for path in paths), meaning) for *paths, meaning in parts]
