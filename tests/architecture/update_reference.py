"""Writes the generated pages of docs/: settings, commands, metrics, stages, files of the store. Run it after a change
to what they say: python -m tests.architecture.update_reference
"""

from __future__ import annotations

from pathlib import Path

from tests.architecture.reference import commands, metrics, settings, stages, store_files
from tests.architecture.reference.text import COMMAND as COMMAND
from tests.architecture.scan import ROOT

PAGES = {
    "settings.md": settings.page,
    "commands.md": commands.page,
    "metrics.md": metrics.page,
    "stages.md": stages.page,
    "store-files.md": store_files.page,
}
"""File in docs/ → what makes its text."""


def path(name: str) -> Path:
    """Where the page is."""
    return ROOT / "docs" / name


if __name__ == "__main__":
    for name, page in PAGES.items():
        path(name).write_text(text := page(), encoding="utf-8")
        print(f"docs/{name}: {len(text.splitlines()):,} lines")
