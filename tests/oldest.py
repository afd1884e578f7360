"""Prints the oldest versions that pyproject.toml allows, as pip takes constraints; `make test-oldest` installs with it.

A pin (`==`) stays, and what has no lower bound is left to pip. Of the extras it takes those of users; a tool of
developers is as new as it comes.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

DEVELOPERS = ("dev", "bench", "browser", "docs")
LOWEST = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*[>=]=\s*([0-9][0-9A-Za-z.]*)")


def oldest(project: dict) -> list[str]:
    """`name==version` for every requirement of pyproject.toml's [project] that has a lower bound, sorted."""
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *(one for name in extras if name not in DEVELOPERS for one in extras[name])]
    return sorted(f"{found[1]}=={found[2]}" for one in listed if (found := LOWEST.match(one)))


if __name__ == "__main__":
    file = Path(__file__).resolve().parents[1] / "pyproject.toml"
    print("\n".join(oldest(tomllib.loads(file.read_text(encoding="utf-8"))["project"])))
