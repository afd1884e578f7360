"""A store that an earlier version wrote is a store of this one: every step whose stage is as it was is cached."""

from __future__ import annotations

import importlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

OLD = Path(__file__).parents[1] / "golden" / "old_store"
RAISED = {
    "reformat": 5, "sft": 3, "generate": 2, "gather": 3, "score": 2, "finetune": 4, "evaluate": 4, "gate": 5,
    "report": 8,
}  # fmt: skip
"""Stage → VERSION that rose since, on purpose: tokens are made once, by `tokenize`, and all stages that read or write
them changed; answers whose reasoning is apart are rejected, and quality.json counts cut prompts; 4 of reformat splits
by the beginning of a conversation, 5 keeps tools; 2 of gate corrects the bounds of fewer than 21 paired rows, 3 reads
the answers of every decoder, which 4 of evaluate measures and 5 of report shows; 4 of
gate names settings of every loss against a collapse, 5 says what to do about too few rows; 6 of report names settings
of the run's own loss, and its headline is of the gate's metric, which in 7 may be of any decoder, and in 8 each column
has a tooltip; 4 of finetune does not compute pairs of identical answers,
which are no longer in the means of rewards and log-probs."""
NEW = {"tokenize"}
WHY = {
    "reformat": "version of reformat: 1 → 5",
    "tokenize": "never ran before",
    "sft": "version of sft: 2 → 3",
}
"""Of the steps whose inputs are there in a plan; all others read what one of these will write."""


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


def test_steps_of_an_old_store_are_cached_but_for_raised_stages(spinloop, server, old_store: Path) -> None:
    """Catches a stage name, a config field, a default or a version in a key that changed with the code around it: the
    store of every user would be computed again. And steps that are computed again for another reason than the raised
    version of a stage. A run computes what the old store lacks, on the old rows and model; in the next all is
    cached."""
    before = recorded(old_store)
    assert len(before) == 34
    code, out, err = spinloop("plan", OLD / "profile.yaml", "--store", old_store, "--json")
    assert code == 0, err
    plan = json.loads(out)
    hits = [(step["stage"], step["label"]) for step in plan if step["state"] == "cached"]
    assert hits == [("demo_rows", "train"), ("demo_rows", "test"), ("demo_model", "")]
    missing = [step for step in plan if step["state"] != "cached"]
    assert {step["stage"] for step in missing} == {*RAISED, *NEW}
    for step in missing:
        of = step["why"].removeprefix("reads what ").partition("[")[0]
        assert step["why"] == WHY.get(step["stage"]) or of in RAISED, step

    def run() -> list[dict]:
        code, out, err = spinloop("run", OLD / "profile.yaml", "--store", old_store, "--json")
        assert code == 0, err
        return json.loads(Path(json.loads(out)["folder"], "steps.json").read_text())

    assert {step["stage"] for step in run() if step["state"] != "Cached"} == {*RAISED, *NEW}
    steps = run()
    assert {step["state"] for step in steps} == {"Cached"} and len(steps) == len(plan)
    of_old = {step["key"]: step["digest"] for step in steps if step["stage"] not in {*RAISED, *NEW}}
    assert len(of_old) == 3 and of_old.items() <= before.items()


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
