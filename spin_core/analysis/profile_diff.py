"""Which settings differ between two profiles, in the order in which a profile has them: a reproduction ledger.

Is not: a verdict. A setting that differs may not matter, and equal settings on other data are another experiment.
`runtime` and `name` change no result and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from spin_core.analysis.format import plain, setting_text

DEFAULT = "zephyr-7b"
OUTSIDE = ("name", "runtime")
ABSENT = object()
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Difference:
    """A setting with its value in either profile, as text."""

    setting: str
    here: str
    there: str


def preset(name: str = DEFAULT) -> dict[str, Any]:
    """The settings of a preset (a profile of deployments/profiles, or a file). Raises BadInput for an unknown one."""
    from spin_core.config.profile import load_profile

    return load_profile(name)[0].model_dump(mode="json")


def differences(here: Settings, there: Settings) -> list[Difference]:
    """Every setting that differs. A section that only one of the two has is one difference."""
    return list(_walk(_complete(here), _complete(there), ""))


def sentence(differing: list[Difference], name: str) -> str:
    """The first setting that differs, and how many more there are."""
    if not differing:
        return f"No setting differs from the preset {name}."
    first, more = differing[0], len(differing) - 1
    rest = f", and {more:,} more {'setting differs' if more == 1 else 'settings differ'}" if more else ""
    return (
        f"The first setting that differs from the preset {name} is {first.setting}: {first.here} here, {first.there} "
        f"there{rest}."
    )


def _complete(profile: Settings) -> dict[str, Any]:
    """With every field, in the order of `Config`: a record leaves out defaults and sorts names. A profile of another
    version of the project stays as it is."""
    from spin_core.config.profile import Config

    try:
        return Config.model_validate({"name": "run", **profile}).model_dump(mode="json")
    except (ValidationError, ValueError):
        known = [name for name in Config.model_fields if name in profile]
        return {name: profile[name] for name in [*known, *sorted(profile.keys() - set(known))]}


def _walk(here: Any, there: Any, path: str) -> Iterator[Difference]:
    if isinstance(here, dict) and isinstance(there, dict):
        # An iteration's overrides are numbered; the numbers are text in a record.
        here, there = ({str(name): value for name, value in side.items()} for side in (here, there))
        names = list(dict.fromkeys([*there, *here]))
        for name in sorted(names, key=int) if names and all(name.isdecimal() for name in names) else names:
            if path or name not in OUTSIDE:
                yield from _walk(here.get(name, ABSENT), there.get(name, ABSENT), f"{path}.{name}" if path else name)
    elif here != there:
        yield Difference(setting_text(path), _text(here), _text(there))


def _text(value: Any) -> str:
    if isinstance(value, dict) and value:
        return plain(", ".join(f"{name}: {_text(one)}" for name, one in value.items()), 400)
    return "not set" if value is ABSENT or value is None else "empty" if value in ("", [], {}) else setting_text(value)
