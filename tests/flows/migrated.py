"""Prefect homes that begin with an empty database of today's layout: to make one takes Prefect 10 s of a core, and the
tests start a dozen servers. tests/flows/test_embedded.py starts on a home that is empty, as a user's first run does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock


def home(place: Path) -> Path:
    """The folder `place`, made where it is not there, with such a database if it has none."""
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "prefect.db").exists():
        shutil.copyfile(_template(), place / "prefect.db")
    return place


def _template() -> Path:
    """Made by whichever of pytest-xdist's processes comes first."""
    folder = Path(os.environ["SPINLOOP_TEST_DATABASE"])
    folder.mkdir(exist_ok=True)
    made = folder / "made.db"
    with FileLock(f"{folder}.lock"):
        if not made.exists():
            kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
            subprocess.run(
                [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"],
                cwd=folder, env=kept | {"PREFECT_HOME": str(folder), "DO_NOT_TRACK": "1"}, check=True,
                capture_output=True,
            )  # fmt: skip
            (folder / "prefect.db").rename(made)
    return made
