"""What a store's runs cost over time, by profile, stage and week: computed, and what the cache saved.

An execution is one time that a run was started: runs/<name>/ has a file for each (`name_of`), with the costs of its
steps by stage. What one execution computed, a later one has cached: `used` counts each computation once, `saved` what
the cache saved each time. Is not: a clock, nor the disk (`spin_core.store.usage`). Of runs from before there were such
files only the last execution is known; they are counted with it, at the time of their ledger, and said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from spin_core.analysis.costs import FIGURES, Costs, StageCosts
from spin_core.config.stage_table import ORDER
from spin_core.errors import BadInput

FILE = re.compile(r"costs-(\d{8}T\d{6}Z)-[0-9a-f]{6}\.json")
TIME = "%Y%m%dT%H%M%SZ"
Figures = dict[str, float]


@dataclass(frozen=True)
class Execution:
    """One time that a run was started. `profile`: its name; `costs`: by stage; `known`: False for a run of which only
    the last execution is known."""

    run: str
    profile: str
    began: datetime
    costs: Costs
    known: bool = True


@dataclass
class Sum:
    """FIGURES that were computed (`used`) and cached (`saved`), steps that ran and were cached, and executions."""

    used: Figures = field(default_factory=lambda: dict.fromkeys(FIGURES, 0.0))
    saved: Figures = field(default_factory=lambda: dict.fromkeys(FIGURES, 0.0))
    ran: int = 0
    cached: int = 0
    executions: int = 0

    def add(self, line: StageCosts) -> None:
        """The line of one execution."""
        for name in FIGURES:
            self.used[name] += line["used"].get(name, 0.0)
            self.saved[name] += line["saved"].get(name, 0.0)
        self.ran += line["steps"] - line["cached"]
        self.cached += line["cached"]
        self.executions += 1


@dataclass(frozen=True)
class Account:
    """`weeks`: by the date of the week's Monday, each week from the first to the last, also those without a run.
    `unknown`: runs of which only the last execution is known."""

    total: Sum
    profiles: dict[str, Sum]
    stages: dict[str, Sum]
    weeks: dict[str, Sum]
    unknown: list[str]


def name_of(began: datetime, unique: str) -> str:
    """Of an execution's file in runs/<name>/; `unique`: six hexadecimal digits."""
    return f"costs-{began.astimezone(UTC).strftime(TIME)}-{unique}.json"


def file_of(profile: str, costs: Costs, evaluation: bool = False) -> bytes:
    """What the file has. `evaluation`: of the run's models alone, by `spinloop evaluate`."""
    said = {"evaluation": True} if evaluation else {}
    return json.dumps({"profile": profile, **said, "costs": costs}, indent=1).encode()


def read(runs: Path, ledger: Callable[[Path], tuple[str, Costs] | None]) -> list[Execution]:
    """The executions of every run below `runs`, oldest first. `ledger`: profile and costs of the last execution of a
    run without a file; None where it cannot be read. Raises BadInput for a damaged file."""
    listed: list[Execution] = []
    for folder in sorted(path for path in (runs.iterdir() if runs.is_dir() else ()) if path.is_dir()):
        files = [(path, made) for path in sorted(folder.iterdir()) if (made := FILE.fullmatch(path.name))]
        is_known = False
        for path, made in files:
            began = datetime.strptime(made[1], TIME).replace(tzinfo=UTC)
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                listed.append(Execution(folder.name, str(data["profile"]), began, data["costs"]))
                is_known = is_known or not data.get("evaluation")
            except (OSError, ValueError, KeyError, TypeError):
                raise BadInput(f"{path}: not the costs of an execution; remove it, and it is not counted.") from None
        steps = folder / "steps.json"
        if not is_known and steps.is_file() and (last := ledger(steps)):
            began = datetime.fromtimestamp(steps.stat().st_mtime, UTC)
            listed.append(Execution(folder.name, last[0], began, last[1], known=False))
    return sorted(listed, key=lambda one: (one.began, one.run))


def account(executions: Iterable[Execution]) -> Account:
    """The sums. A stage that is no longer known stands last."""
    total, profiles, stages, weeks = Sum(), {}, {}, {}  # type: ignore[var-annotated]
    unknown = []
    for one in executions:
        total.add(one.costs["total"])
        profiles.setdefault(one.profile, Sum()).add(one.costs["total"])
        weeks.setdefault(monday(one.began), Sum()).add(one.costs["total"])
        for line in one.costs["lines"]:
            stages.setdefault(line["stage"], Sum()).add(line)
        unknown += [] if one.known else [one.run]
    place = {name: i for i, name in enumerate(ORDER)}
    ordered = dict(sorted(stages.items(), key=lambda one: place.get(one[0], len(place))))
    return Account(total, dict(sorted(profiles.items())), ordered, _every_week(weeks), unknown)


def monday(began: datetime) -> str:
    """The date of the Monday of its week, UTC: 2026-11-30."""
    day = began.astimezone(UTC).date()
    return (day - timedelta(days=day.weekday())).isoformat()


def _every_week(weeks: dict[str, Sum]) -> dict[str, Sum]:
    if not weeks:
        return {}
    first, last = (datetime.fromisoformat(at) for at in (min(weeks), max(weeks)))
    count = (last - first).days // 7 + 1
    days = [(first + timedelta(weeks=n)).date().isoformat() for n in range(count)]
    return {day: weeks.get(day, Sum()) for day in days}


def as_json(made: Account) -> dict[str, Any]:
    """For other programs."""
    parts: dict[str, dict[str, Sum]] = {"profiles": made.profiles, "stages": made.stages, "weeks": made.weeks}
    return {
        "total": vars(made.total),
        **{name: {key: vars(one) for key, one in part.items()} for name, part in parts.items()},
        "only_last_execution_known": made.unknown,
    }


def hours_name(total: Sum) -> str:
    """The figure to draw: GPU hours, on a machine without one hours on CPU."""
    return "gpu_hours" if total.used["gpu_hours"] or total.saved["gpu_hours"] else "cpu_hours"


def share_saved(one: Sum, name: str) -> float | None:
    """Of what would have been computed without a cache the share that was not; None for nothing."""
    whole = one.used[name] + one.saved[name]
    return one.saved[name] / whole if whole else None


def since(executions: Sequence[Execution], day: str) -> list[Execution]:
    """Those from a date (2026-11-01, UTC) on. Raises BadInput for what is no date."""
    try:
        first = datetime.combine(date.fromisoformat(day), time(), UTC)
    except ValueError:
        raise BadInput(f"--since {day}: write it as a date, for example 2026-11-01.") from None
    return [one for one in executions if one.began >= first]
