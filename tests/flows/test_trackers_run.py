"""A run, its cached rerun and a run that was killed and goes on have the same curves on their boards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trackers import reading

ROOT = Path(__file__).parents[2]
SETTINGS = ("iterations=1", "sft.epochs=40", "evaluate.answers=false", "evaluate.exact_match=")
SPEED = "generate/tokens_per_second"
"""Another one each time that answers are generated."""


@pytest.mark.full
def test_boards_of_a_run_of_its_rerun_and_of_a_killed_run_are_equal(run, server, tiny, tmp_path):
    """Catches steps that are sent again after `kill -9`, or never; cached steps without curves; curves that are not
    those of metrics.jsonl; a tracker in a key; and a sink that outlives the run that it is of."""
    pytest.importorskip("tensorboard")
    store, killed = tmp_path / "store", tmp_path / "killed"
    board = "runtime.trackers=[tensorboard]"
    ledger = run(store, *SETTINGS, board)
    whole = curves(store)
    assert not reading.sinks_of(store / "trackers")
    losses = {
        stage: [json.loads(line)["loss"] for line in (tree / "metrics.jsonl").read_text().splitlines()]
        for stage, tree in trees(store, ledger).items()
    }
    begin = len(losses["sft"])
    assert whole["sft/loss"] == points(losses["sft"], 1)
    assert whole["finetune/loss"] == points(losses["finetune"], begin + 1)
    assert [at for at, _ in whole["evaluate/nll/real"]] == [begin, begin + len(losses["finetune"])]
    assert [at for at, _ in whole[SPEED]] == [begin]

    shutil.move(store / "trackers", tmp_path / "first")
    again = run(store, *SETTINGS, board)
    assert {step["state"] for step in again} == {"Cached"}
    assert curves(store) == whole

    sets = [part for setting in (*SETTINGS, board) for part in ("--set", setting)]
    command = [sys.executable, "-m", "flows.cli", "run", str(tiny), "--store", str(killed), *sets]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    reading.until(lambda: process.poll() is not None or (done(killed) >= 4 and len(curves(killed)) > 0))
    assert process.poll() is None, "the run ended before it could be killed"
    sinks = reading.sinks_of(killed / "trackers")
    os.killpg(process.pid, signal.SIGKILL)
    for sink in sinks:  # in sessions of their own, to send what came; here nothing is left to do so
        os.kill(sink, signal.SIGKILL)
    process.wait()
    assert 0 < len(curves(killed)["sft/loss"]) < begin, "killed too late to show anything"
    resumed = run(killed, *SETTINGS, board)
    assert [step["key"] for step in resumed] == [step["key"] for step in ledger]
    gone_on = curves(killed)
    assert {name: one for name, one in gone_on.items() if name != SPEED} == {
        name: one for name, one in whole.items() if name != SPEED
    }
    assert len(gone_on[SPEED]) == 1


def points(values: list[float], first: int) -> list[tuple[int, float]]:
    """As an event file has them: in 32 bits."""
    import numpy as np

    return [(at, float(np.float32(value))) for at, value in enumerate(values, first)]


def curves(store: Path) -> reading.Curves:
    """Of the one run that the store's board has; {} while there is none."""
    runs = [path.name for path in (store / "trackers" / "tensorboard" / "tiny").glob("*")]
    assert len(runs) < 2
    return reading.tensorboard(store / "trackers", "tiny", runs[0]) if runs else {}


def done(store: Path) -> int:
    """Steps of the newest checkpoint of SFT."""
    folder = store / "spinloop-store-v1" / "scratch"
    there = [path.name.split("-")[1] for path in folder.glob("sft-*/checkpoint-*")]
    return max(map(int, there), default=0)


def trees(store: Path, ledger: list[dict]) -> dict[str, Path]:
    """The outputs of the trainings."""
    folder = store / "spinloop-store-v1" / "trees"
    return {step["stage"]: folder / step["digest"] for step in ledger if step["stage"] in ("sft", "finetune")}
