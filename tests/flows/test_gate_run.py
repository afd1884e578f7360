"""The gate in full runs: what is made worse on purpose, and what is at its fixed point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SETS = ["gate.metric=nll/real", "dataset.test_limit=40"]


@pytest.fixture
def gated_run(spinloop, server, tiny, tmp_path: Path):
    """Run the tiny profile; its ledger, its gates' decisions, and what was printed on standard error and output."""

    def call(*settings: str) -> tuple[list[dict], list[dict], str]:
        sets = [part for setting in [*SETS, *settings] for part in ("--set", setting)]
        code, out, err = spinloop("run", tiny, "--store", tmp_path / "store", *sets)
        assert code == 0, err
        root = tmp_path / "store" / "spinloop-store-v1"
        folder = Path(out.strip().splitlines()[-1].removeprefix("Report: ")).parent
        steps = json.loads((folder / "steps.json").read_text())
        gates = [
            json.loads((root / "trees" / step["digest"] / "decision.json").read_text())
            for step in steps
            if step["stage"] == "gate"
        ]
        return steps, gates, err + out

    return call


@pytest.mark.full
def test_iteration_made_worse_on_purpose_is_not_best(gated_run) -> None:
    """Catches a run whose last model counts as its best, an alarm that nobody sees, and a ruined model that ends the
    run or loses its predecessor."""
    _, gates, shown = gated_run("overrides={1: {finetune: {lr: 0.5}}}")
    assert [gate["best"] for gate in gates] == [1, 1]
    assert gates[1]["outcome"] == "alarm" and any("much less likely" in sign for sign in gates[1]["alarms"])
    assert gates[1]["change"]["low"] > 0 and "θ_1 stays best" in gates[1]["reason"] and gates[1]["go_on"]
    assert gates[1]["reason"] in shown
    assert "θ_1 ★" in shown


def test_run_at_its_fixed_point_stops_early(gated_run, spinloop, tiny, tmp_path) -> None:
    """Catches iterations that are paid for after accuracy is saturated, and a plan that counts those that will not
    run."""
    steps, gates, shown = gated_run("finetune.lr=1e-14", "iterations=3")
    assert [gate["outcome"] for gate in gates] == ["stop"] and not gates[0]["go_on"] and "fixed point" in shown
    assert sum(step["stage"] == "finetune" for step in steps) == 1
    sets = [part for setting in [*SETS, "finetune.lr=1e-14", "iterations=3"] for part in ("--set", setting)]
    code, out, err = spinloop("plan", tiny, "--store", tmp_path / "store", *sets)
    assert code == 0 and "0 would run" in out, err
