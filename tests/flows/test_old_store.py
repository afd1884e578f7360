"""A store that an earlier version wrote is a store of this one: every step is cached."""

from __future__ import annotations

import importlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

OLD = Path(__file__).parents[1] / "golden" / "old_store"
RAISED = {"gate": 2}
"""Stage → VERSION that rose since, on purpose: 2 of gate corrects the bounds of fewer than 21 paired rows. Its decision
here is the one from before, so that report, which reads it, is cached still."""


@pytest.fixture
def old_store(tmp_path: Path) -> Path:
    """A private copy of the old store."""
    with tarfile.open(OLD / "store.tar.xz") as packed:
        how = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python below 3.11.4 has none
        packed.extractall(tmp_path / "store", **how)
    return tmp_path / "store"


def recorded(store: Path) -> dict[str, str]:
    """Key → digest of every record."""
    records = [json.loads(path.read_text()) for path in store.glob("*/records/*/*.json")]
    return {record["key"]: record["digest"] for record in records}


def test_every_step_of_an_old_store_is_cached(spinloop, server, old_store: Path) -> None:
    """Catches a stage name, a config field, a default or a version in a key that changed with the code around it: the
    store of every user would be computed again."""
    before = recorded(old_store)
    assert len(before) == 34
    code, out, err = spinloop("plan", OLD / "profile.yaml", "--store", old_store, "--json")
    assert code == 0, err
    missing = [step for step in json.loads(out) if step["state"] != "cached"]
    unexpected = [step for step in missing if step["stage"] not in RAISED]
    assert all(step["why"].removeprefix("reads what ").partition("[")[0] in RAISED for step in unexpected), missing

    code, out, err = spinloop("run", OLD / "profile.yaml", "--store", old_store, "--json")
    assert code == 0, err
    steps = json.loads(Path(json.loads(out)["folder"], "steps.json").read_text())
    ran = [(step["stage"], step["label"]) for step in steps if step["state"] != "Cached"]
    assert {stage for stage, _ in ran} == set(RAISED), ran
    cached = {step["key"]: step["digest"] for step in steps if step["state"] == "Cached"}
    assert cached.items() <= before.items()
    assert len(cached) == 34 - len(ran) == len(steps) - len(ran)


def test_raised_versions_are_those_of_the_stages() -> None:
    """Catches an exception for a stage whose VERSION was not raised: a key would move without anybody's decision."""
    for stage, version in RAISED.items():
        assert version == importlib.import_module(f"spin_core.stages.{stage}").VERSION


def test_old_code_is_one_note_per_stage(spinloop, server, old_store: Path) -> None:
    """Catches a screen of notes, one for each shard, or none at all, where cached steps were computed by other code."""
    code, _, err = spinloop("plan", OLD / "profile.yaml", "--store", old_store)
    assert code == 0, err
    notes = [line for line in err.splitlines() if line.startswith("note: ") and "other code" in line]
    assert notes and max(Counter(notes).values()) == 1, err
