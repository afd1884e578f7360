"""Which runs a store gives up: by age, by a quota, and never a pinned one. gc then removes what nobody else needs.

The policy is `store.yaml` in the store's folder (on S3: the object `store.yaml` beside `records/`). Here alone a clock
decides something: gc itself is given names of runs. Is not: what a run needs (roots.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import yaml

from spin_core.errors import BadInput
from spin_core.store.runs import Pointer

FILE = "store.yaml"
PINNED = "pinned"
"""The file of a run's folder that says that it is pinned."""
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(B|KB|MB|GB|TB)")
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
AGE = re.compile(r"(\d+) ?([dw])")
Outputs = Mapping[str, Mapping[Hashable, int]]
"""Digest → its files and their bytes; one that several outputs share is the same file in each."""
Needed = Callable[[Collection[str]], set[str]]
"""Runs that are given up → digests of the outputs that stay."""


@dataclass(frozen=True)
class Policy:
    """`keep_runs`: the last so many stay; `older_than`: runs that were last started longer ago go; `max_size`: bytes of
    all outputs, the oldest runs go until they fit. `pack`: in a folder, pack models afterwards; `while_used`:
    clear it in two steps where runs use it."""

    keep_runs: int = 1
    older_than: timedelta | None = None
    max_size: int | None = None
    pack: bool = False
    while_used: bool = False


@dataclass(frozen=True)
class Decision:
    """`forget`: run → why it is given up, oldest first; `size`: bytes of the outputs that then stay; `unknown`: runs
    that stay because their age is not known."""

    forget: dict[str, str] = field(default_factory=dict)
    size: int = 0
    unknown: tuple[str, ...] = ()


def parse(data: Any, where: str) -> Policy:
    """A policy from plain data such as {older_than: 30d, max_size: 2TB}. Raises BadInput, `where` first."""
    if not isinstance(data, dict):
        raise BadInput(f"{where}: write settings, such as older_than: 30d.")
    known = list(Policy.__dataclass_fields__)
    for name in data:
        if name not in known:
            raise BadInput(f"{where}: {name}: unknown setting; there are {', '.join(known)}.")
    count = data.get("keep_runs", 1)
    if type(count) is not int or count < 0:
        raise BadInput(f"{where}: keep_runs: {count!r} is no number of runs from 0.")
    switches = {name: data.get(name, False) for name in ("pack", "while_used")}
    for name, value in switches.items():
        if type(value) is not bool:
            raise BadInput(f"{where}: {name}: {value!r} is neither true nor false.")
    return Policy(count, age(data.get("older_than"), where), size(data.get("max_size"), where), **switches)


def age(text: Any, where: str) -> timedelta | None:
    """`30d`, `12w`; None stays. Raises BadInput."""
    if text is None:
        return None
    if not (parts := AGE.fullmatch(str(text))) or int(parts[1]) > 36500:
        raise BadInput(f"{where}: older_than: {text!r} is no age; write days or weeks, such as 30d or 12w.")
    return timedelta(days=int(parts[1]) * (7 if parts[2] == "w" else 1))


def size(text: Any, where: str) -> int | None:
    """`500GB`, `2TB` in bytes; None stays. Raises BadInput."""
    if text is None:
        return None
    if not (parts := SIZE.fullmatch(str(text).upper())):
        raise BadInput(f"{where}: max_size: {text!r} is no size; write it with its unit, such as 500GB or 2TB.")
    return int(float(parts[1]) * UNITS[parts[2]])


def encoded(data: Mapping[str, Any]) -> bytes:
    """What store.yaml has."""
    text: str = yaml.safe_dump(dict(data), sort_keys=False)
    return f"# What `spinloop store gc --policy` and the deployment gc/gc keep.\n{text}".encode()


def decide(
    policy: Policy,
    there: Mapping[str, Pointer],
    began: Mapping[str, datetime],
    pinned: Collection[str],
    outputs: Outputs,
    needed: Needed,
    now: datetime,
) -> Decision:
    """Which runs of `there` go. `began`: when a run was last started.

    Raises BadInput where what must stay is more than `max_size`: it says what that is.
    """
    runs = sorted(there, key=lambda name: (there[name][1], name))
    last = runs[len(runs) - policy.keep_runs :] if policy.keep_runs else []
    open_to_go = [run for run in runs if run not in last and run not in pinned]
    forget: dict[str, str] = {}
    unknown: list[str] = []
    limit = policy.older_than
    for run in open_to_go if limit is not None else []:
        if run not in began:
            unknown.append(run)
        elif limit is not None and (old := now - began[run]) > limit:
            forget[run] = f"last started {old.days} days ago"

    def bytes_of(digests: Collection[str]) -> int:
        files: dict[Hashable, int] = {}
        for digest in digests:
            files |= outputs.get(digest, {})
        return sum(files.values())

    total = bytes_of(needed(forget))
    for run in open_to_go:
        if policy.max_size is None or total <= policy.max_size:
            break
        if run not in forget:
            forget[run] = f"the oldest, and {total / 1e9:,.3g} GB are more than {policy.max_size / 1e9:,.3g} GB"
            total = bytes_of(needed(forget))
    if policy.max_size is not None and total > policy.max_size:
        raise BadInput(_too_small(policy.max_size, total, runs, last, pinned, bytes_of, needed))
    stay = tuple(run for run in unknown if run not in forget)
    return Decision({run: forget[run] for run in runs if run in forget}, total, stay)


def _too_small(
    most: int,
    total: int,
    runs: list[str],
    last: list[str],
    pinned: Collection[str],
    bytes_of: Callable[[Collection[str]], int],
    needed: Needed,
) -> str:
    best = needed(runs)
    parts = [f"the best models of {len(runs)} runs take {bytes_of(best) / 1e9:,.3g} GB"]
    for what, own in (("pinned", sorted(set(pinned) & set(runs))), ("the latest", last)):
        if own:
            more = bytes_of(needed([run for run in runs if run not in own]) - best) / 1e9
            parts.append(f"{what} ({', '.join(own[:5])}{', …' if len(own) > 5 else ''}) {more:,.3g} GB more")
    return (
        f"max_size: {most / 1e9:,.3g} GB are less than the {total / 1e9:,.3g} GB that must stay: {', '.join(parts)}. "
        "Raise it, unpin a run (`spinloop store unpin RUN`) or give one up (`spinloop store forget RUN`)."
    )
