"""`runtime.compute` in a run: stages that several processes share, as a user starts them."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from spin_core.runtime.child import Child

SHARED = ("generate", "score", "finetune", "evaluate")


def outputs(store: Path, steps: list[dict]) -> dict[tuple[str, str], Path]:
    """Where each step's output lies."""
    trees = store / "spinloop-store-v1" / "trees"
    return {(step["stage"], step["label"]): trees / step["digest"] for step in steps}


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs the package deepspeed (pip install .[dev])")
@pytest.mark.full
def test_iteration_shared_by_two_processes_is_that_of_one(run, finished, tmp_path, monkeypatch) -> None:
    """Catches a stage that is not shared at all, one that computes twice or half, answers in another order, and a key
    that depends on how many processes there are.

    Weights are in parts (ZeRO-3 trains, FSDP2 reads). The first iteration's records are taken out of a finished store,
    so that its stages run again on the same inputs.
    """
    store, first = Path(shutil.copytree(finished[0], tmp_path / "store", symlinks=True)), finished[1]
    mine = [step for step in first if step["stage"] in SHARED and "iter 1" not in step["label"]]
    mine = [step for step in mine if step["label"] != "θ_2"]
    for step in mine:
        (store / "spinloop-store-v1" / "records" / step["stage"] / f"{step['key']}.json").unlink()
    jobs: list[tuple[str, bool]] = []
    work = Child.run

    def seen(self: Child, spec: dict, *rest) -> dict:
        jobs.append((spec["stage"], self.together))
        return work(self, spec, *rest)

    monkeypatch.setattr(Child, "run", seen)
    steps = run(store, "iterations=1", "runtime.compute.processes=2", "runtime.compute.sharding=zero3")
    ran = {(step["stage"], step["label"]) for step in steps if step["state"] == "ran"}
    assert {(step["stage"], step["label"]) for step in mine} <= ran
    before, after = outputs(finished[0], first), outputs(store, steps)
    keys = {(step["stage"], step["label"]): step["key"] for step in steps}
    for step in mine:
        name = (step["stage"], step["label"])
        if step["stage"] in ("generate", "score") or name == ("evaluate", "θ_0"):
            assert keys[name] == step["key"], name
        if step["stage"] == "generate":
            assert (after[name] / "answers.jsonl").read_text() == (before[name] / "answers.jsonl").read_text()
        if step["stage"] == "score":
            one, two = (pq.read_table(place[name] / "logps.parquet").to_pydict() for place in (before, after))
            assert one["id"] == two["id"]
            for column in ("real", "generated"):
                assert two[column] == pytest.approx(one[column], abs=2e-4)
        if name == ("evaluate", "θ_0"):
            one, two = (json.loads((place[name] / "metrics.json").read_text()) for place in (before, after))
            assert two == pytest.approx(one, abs=1e-5)
        if step["stage"] == "finetune":
            one, two = (load_file(place[name] / "model.safetensors") for place in (before, after))
            assert max(float((one[part] - two[part]).abs().max()) for part in one) < 1e-5
    assert {stage for stage, together in jobs if together} == set(SHARED)
    assert not {stage for stage, together in jobs if not together} & set(SHARED)
