"""What `spinloop deploy` says of each thing that it looked at."""

from __future__ import annotations

from typing import Any

SHOWN = 4  # names of changed fields in one line


def status_line(state: str, what: str, name: str, fields: list[str] | None = None) -> str:
    """One line: what became of a thing, and the fields that changed."""
    fields = fields or []
    more = f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else ""
    return f"{state:<8} {what:<11} {name}" + (f": {', '.join(fields[:SHOWN])}{more}" if fields else "")


def differing(old: Any, new: Any, path: str = "") -> list[str]:
    """The dotted names of what is not the same in two values."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [p for name in names for p in differing(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))]
    return [] if old == new else [path]
