"""The board of a training, of its cached rerun and of one that was killed and goes on: real event files."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_data import made_up_pairs, metrics_of, rows_tree

from tests.trackers import reading

HERE = Path(__file__).resolve().parent


def started(*arguments: Path) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    command = [sys.executable, str(HERE / "tracked_child.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)


def ended(*arguments: Path) -> dict:
    """What the training says at its end."""
    with started(*arguments) as child:
        assert child.stdout
        said = child.stdout.read()
    assert child.returncode == 0
    return json.loads(said)


def board(store: Path) -> reading.Curves:
    """{} while there is none."""
    there = any((store / "trackers" / "tensorboard" / "demo" / "demo-1").glob("events.*"))
    return reading.tensorboard(store / "trackers", "demo", "demo-1") if there else {}


def test_boards_of_a_training_of_its_rerun_and_of_a_killed_one_are_equal(tmp_path, theta) -> None:
    """Catches steps that are sent again after `kill -9`, steps that nobody sends (those before the checkpoint that the
    killed run had not sent), a cached step without curves, and curves that are not those of metrics.jsonl."""
    pytest.importorskip("tensorboard")
    inputs = theta, rows_tree(tmp_path / "rows", made_up_pairs(10))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = ended(whole, *inputs)
    curves = board(whole)
    first, second = (metrics_of(Path(tree)) for tree in done["trees"])
    assert (len(first), len(second)) == (6, 240)
    for name in ("loss", "grad_norm", "lr", "epoch"):
        assert curves[f"sft/{name}"] == points(first, name, 0)
        assert curves[f"control-1/sft/{name}"] == points(second, name, 6)

    shutil.rmtree(whole / "trackers")
    assert ended(whole, *inputs)["cached"] == [True, True]
    assert board(whole) == curves

    with started(killed, *inputs) as child:
        reading.until(lambda: child.poll() is not None or len(board(killed).get("control-1/sft/loss", [])) > 20)
        assert child.poll() is None, "it was over before it was killed"
        sinks = reading.sinks_of(killed / "trackers")
        os.killpg(child.pid, signal.SIGKILL)
        for sink in sinks:  # a session of its own, in which it would send what came
            os.kill(sink, signal.SIGKILL)
    assert len(board(killed)["control-1/sft/loss"]) < 240, "it was killed too late to show anything"
    assert ended(killed, *inputs)["cached"] == [True, False]
    assert board(killed) == curves


def points(lines: list[dict], name: str, behind: int) -> list[tuple[int, float]]:
    """As an event file has them, in 32 bits."""
    return [(behind + line["step"], float(np.float32(line[name]))) for line in lines]
