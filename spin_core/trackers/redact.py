"""A profile as a board shows it: dotted names, no path of this machine, no login."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LOCAL = ("/", "~", "./", "../", "file:")
LOGIN = re.compile(r"(?<=://)[^/@\s]+@")
HIDDEN = ("runtime.trackers", "runtime.vllm_python", "name")


def settings(profile: Mapping[str, Any], base_dir: Path) -> dict[str, Any]:
    """`{"finetune.lr": 5e-7, …}` of a profile as JSON. Of a path that is local only the last name is left; it may be
    relative to `base_dir`."""
    return {name: value for name, value in _flat(profile, "", base_dir) if name not in HIDDEN}


def _flat(value: Any, name: str, base_dir: Path) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key), base_dir)
    elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        for i, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{i}", base_dir)
    elif isinstance(value, list):
        yield name, ", ".join(str(_shown(one, base_dir)) for one in value)
    elif value is not None and value != {}:
        yield name, _shown(value, base_dir)


def _shown(value: Any, base_dir: Path) -> Any:
    if not isinstance(value, str):
        return value
    if "\n" not in value and len(value) < 1000 and _is_local(value, base_dir):
        return f"…/{Path(value).name}"
    return LOGIN.sub("", value)


def _is_local(value: str, base_dir: Path) -> bool:
    if value.startswith(LOCAL):
        return True
    try:
        return "/" in value and (base_dir / value).exists()
    except (OSError, ValueError):
        return False
