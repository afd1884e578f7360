"""What the Prefect UI shows of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.run import Run


def show(run: Run, tree: Path, folder: Path) -> None:
    """Create the artifacts of a finished run from its report."""


def so_far(run: Run, tree: Path, t: int) -> str:
    """Before iteration `t`: create the artifacts of the run so far, and say in Markdown what a person needs to decide
    whether it goes on."""
    return ""
