"""The smoke run: every stage in a minute or less, by the command line with a server of its own.

Watched by audit/sitecustomize.py; and where Prefect would keep results lie pickles that leave a marker when loaded.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.flows import migrated
from tests.flows.fixtures import TINY

ROOT = Path(__file__).parents[3]
AUDIT = Path(__file__).parent / "audit"
PROFILE = {**TINY, "name": "smoke", "iterations": 1}


@dataclass
class Smoke:
    """A finished run: its store, its ledger, Prefect's home, and what its processes did that is watched."""

    store: Path
    steps: list[dict]
    home: Path
    events: list[dict]

    @property
    def digests(self) -> dict[tuple[str, str], str]:
        return {(step["stage"], step["label"]): step["digest"] for step in self.steps}

    def events_of(self, what: str) -> list[dict]:
        return [event for event in self.events if event["what"] == what]


class Marker:
    """What a pickle runs when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def storage(home: Path) -> Path:
    """Where Prefect keeps results, if a task requests that."""
    return home / "storage"


def plant(home: Path) -> Path:
    """Pickles in Prefect's result storage, under names that it uses; where the marker would be."""
    from prefect.serializers import PickleSerializer

    marker = home / "marker"
    data = PickleSerializer().dumps(Marker(marker))
    record = {"metadata": {"storage_key": "x", "serializer": {"type": "pickle"}, "prefect_version": "3.8.8"}}
    for name in ("spin", "finetune", "0" * 32, "results/x"):
        (storage(home) / name).parent.mkdir(parents=True, exist_ok=True)
        (storage(home) / name).write_text(json.dumps({**record, "result": data.decode()}))
        (storage(home) / f"{name}.pkl").write_bytes(pickle.dumps(Marker(marker)))
    return marker


def environment(home: Path, **more: str) -> dict[str, str]:
    """Of a user with no Prefect server, whose processes are watched."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    ours = {
        "PREFECT_HOME": str(home),
        "SPINLOOP_TEST_AUDIT": str(home.parent / f"{home.name}.audit"),
        "SPINLOOP_TEST_WATCHED": str(storage(home)),
        "PYTHONPATH": os.pathsep.join([str(AUDIT), str(ROOT)]),
    }
    return {**kept, **ours, **more}


def make_smoke(profile: Path, place: Path, before: Sequence[str] = (), *settings: str) -> Smoke:
    """Run it in a new store at `place`. `before`: a command that the run is given to."""
    home, store = place / "prefect", place / "store"
    migrated.home(home)
    sets = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(
        [*before, sys.executable, "-m", "flows.cli", "run", str(profile), "--store", str(store), "--json", *sets],
        cwd=place, env=environment(home), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return read_smoke(place)


def read_smoke(place: Path) -> Smoke:
    """The run that was made at `place`."""
    home, store = place / "prefect", place / "store"
    steps = json.loads((store / "spinloop-store-v1" / "latest" / "steps.json").read_text())
    return Smoke(store, steps, home, watched(home))


def watched(home: Path) -> list[dict[str, Any]]:
    """What the processes of a run reported."""
    return [json.loads(line) for line in (home.parent / f"{home.name}.audit").read_text().splitlines()]
