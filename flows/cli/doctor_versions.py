"""Where the installed versions differ from the tested ones, for `spinloop doctor`."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
"""In a checkout only: pip needs it before anything is installed, and a wheel does not have it."""


def compare_versions(constraints: Path = CONSTRAINTS) -> list[tuple[str, str, str]]:
    """Doctor's lines: one for each direct dependency that is installed in another version than was tested, or one that
    says that there is none. What only developers install is not looked at."""
    if not constraints.is_file():
        return [("-", "tested versions", "no constraints.txt, which a checkout has: not compared")]
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", constraints.read_text(encoding="utf-8"), re.MULTILINE))
    tested = {_canonical(name): version for name, version in tested.items()}
    names = [name for name in direct_dependencies() if name in tested and installed_version(name)]
    lines = [
        ("-", name, f"{installed_version(name)} is installed; tested with {tested[name]}: {_remedy(name)}")
        for name in names
        if installed_version(name) != tested[name]
    ]
    return lines or [("ok", "tested versions", f"all {len(names)} direct dependencies are as in constraints.txt")]


def direct_dependencies() -> list[str]:
    """Canonical names of what spinloop requires, with its extras for users and without those for developers."""
    requirements = metadata.requires("spinloop") or []
    used = [one for one in requirements if not re.search(r"extra == .(dev|bench|browser)\b", one)]
    return sorted({_canonical(re.match(r"[\w.-]+", one).group()) for one in used})  # type: ignore[union-attr]


def installed_version(name: str) -> str:
    """Without the local part (`+cpu`), which says how it was built; empty where it is not installed."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _remedy(name: str) -> str:
    return f"`pip install --constraint constraints.txt {name}` if something fails"
