"""What the runs of a profile last trained on: runs/<name>/trained.json, which a run leaves when it has come to its
report, and links to those rows and tokens, so that gc keeps them until a later run of the folder has trained.

A run that failed, or that looked at its dataset and did not begin, leaves what was there. Is not: the ledger, which is
of the last execution whatever became of it; but of runs from before there was such a file the ledger says it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from spin_core.config.stage_table import TRAINING
from spin_core.errors import BadInput
from spin_core.job import Entry
from spin_core.report.run_facts import STEPS, read_steps
from spin_core.store.digest import children
from spin_core.store.keys import DIGEST
from spin_core.store.runs import RUN
from spin_core.store.store import Store
from spin_core.store.usage import profile_of

FILE = "trained.json"
ROWS, TOKENS = "trained-rows", "trained-tokens"
"""Labels of the links."""


@dataclass(frozen=True)
class Trained:
    """A run that trained. `at`: when it ended, UTC in ISO 8601; `settings`: a digest of all that it was set to but for
    where its rows lie and how it used its machine, empty where that is not known; `rows`, `tokens`: keys of its
    reformat and tokenize."""

    run: str
    at: str
    settings: str
    rows: str
    tokens: str

    @property
    def name(self) -> str:
        """`demo-3fa9c1 of 2026-11-20`"""
        return f"{self.run} of {self.at[:10]}"


def keep(store: Store, run: str, ledger: Sequence[Entry], settings: str, at: datetime) -> None:
    """Leave it of a run that has come to its report; nothing where it trained no model."""
    made = _of(ledger, run, settings, at)
    if made is None:
        return
    digests = {step.key: step.digest for step in ledger}
    store.link_run(run, {ROWS: digests[made.rows], TOKENS: digests[made.tokens]})
    store.write_run_file(run, FILE, json.dumps(asdict(made), indent=1).encode())


def last(store: Store, profile: str, settings: str, run: str) -> Trained | None:
    """The last run of a profile that trained: of those with the same settings, where there are some. `run`: the name
    that a run of these settings and this place of the rows has."""
    folders = [path for path in children(store.root / "runs") if RUN.fullmatch(path.name)]
    named = [path for path in folders if profile_of(path.name) == profile]
    known = [made for path in named if (made := _read(path, settings if path.name == run else ""))]
    alike = [one for one in known if one.settings == settings]
    return max(alike or known, key=lambda one: one.at, default=None)


def _read(folder: Path, settings: str) -> Trained | None:
    """Of one folder; `settings`: of a run from before there was such a file, whose name says them."""
    with suppress(OSError, ValueError, TypeError):
        made = Trained(**{**json.loads((folder / FILE).read_text(encoding="utf-8")), "run": folder.name})
        if DIGEST.fullmatch(made.rows) and DIGEST.fullmatch(made.tokens) and datetime.fromisoformat(made.at).tzinfo:
            return made
    with suppress(OSError, ValueError, BadInput):
        at = datetime.fromtimestamp((folder / STEPS).stat().st_mtime, UTC)
        return _of(read_steps(folder / STEPS), folder.name, settings, at)
    return None


def _of(ledger: Sequence[Entry], run: str, settings: str, at: datetime) -> Trained | None:
    """None where the ledger is of a run that did not train, or did not come to its report."""
    keys = {step.stage: step.key for step in reversed(ledger) if step.digest and step.place.pairs is None}
    if not keys.keys() >= {"report", "reformat", "tokenize"} or not keys.keys() & {*TRAINING}:
        return None
    return Trained(run, at.isoformat(), settings, keys["reformat"], keys["tokenize"])
