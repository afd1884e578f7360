"""A killed run goes on from its checkpoint and ends in the same bytes."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from training_data import (
    DIGESTS,
    finetune_config,
    job_at,
    made_up_pairs,
    pairs_tree,
    rows_tree,
    scored,
    sft_config,
)

from spin_core import errors
from spin_core.errors import StageFailed
from spin_core.job import Job
from spin_core.stages import finetune, sft

HERE = Path(__file__).resolve().parent


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


class Stopped(Exception):
    """What `stop_at` ends a run with, in place of a kill."""


CONFIG = finetune_config(schedule_epochs=3.0, warmup_ratio=0.1)


def stopping(job: Job, label: str, step: int | None) -> Job:
    """The job, ended as by an exception when `label` has done `step` steps."""

    def send(event: dict) -> None:
        if event["label"] == label and event["done"] == step:
            raise Stopped

    job.send = send
    return job


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, theta) -> dict:
    root = tmp_path_factory.mktemp("inputs")
    tree = pairs_tree(root / "pairs", made_up_pairs(10), [])
    return {"model": theta, "pairs": [tree], "logps": [scored(root / "score", theta, tree, CONFIG)]}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, inputs) -> dict[str, bytes]:
    """What a run of 9 steps without interruption and without checkpoints writes."""
    job = job_at(tmp_path_factory.mktemp("uninterrupted"), DIGESTS, checkpoint_every=0)
    finetune.run(inputs, CONFIG, job)
    assert not list(job.scratch.iterdir())
    return content(job.out)


@pytest.fixture
def spin_run(tmp_path, inputs):
    """`run(name, stop_at, every)`: the same run under that name's scratch, ended early at a step on request."""

    def run(
        name: str, stop_at: int | None = None, every: int = 2, config: finetune.Config = CONFIG
    ) -> dict[str, bytes]:
        job = stopping(job_at(tmp_path / name, DIGESTS, checkpoint_every=every), "finetune", stop_at)
        finetune.run(inputs, config, job)
        return content(job.out)

    return run


def kill_at(step: int, inputs: dict, place: Path, **changes: Any) -> None:
    """Starts the child and sends SIGKILL when it says that `step` optimiser steps are done."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    arguments = [inputs["model"], inputs["pairs"][0], inputs["logps"][0], place, json.dumps(changes)]
    command = [sys.executable, str(HERE / "killed_child.py"), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout
        for line in child.stdout:
            if line.split() == ["finetune", str(step)]:
                child.send_signal(signal.SIGKILL)
                break
        else:
            pytest.fail("the child ended before it could be killed")
    assert child.returncode == -signal.SIGKILL


def test_finetune_killed_twice_and_resumed_same_bytes(tmp_path, inputs, uninterrupted) -> None:
    """Catches optimiser state, data order, metrics or learning rate that a resume does not restore."""
    for step in (random.randint(2, 4), random.randint(6, 8)):
        kill_at(step, inputs, tmp_path / "killed")
    assert list((tmp_path / "killed" / "scratch").glob("checkpoint-*"))
    assert not list((tmp_path / "killed" / "out").iterdir())
    events: list[dict] = []
    rerun = job_at(tmp_path / "killed", DIGESTS, events, checkpoint_every=2)
    finetune.run(inputs, CONFIG, rerun)
    done = [event["done"] for event in events if event["label"] == "finetune"]
    assert done[1] >= 4, "it began anew"
    assert content(rerun.out) == uninterrupted


def test_sft_stopped_and_resumed_same_bytes(tmp_path, theta) -> None:
    """Catches AdamW's moments and step count lost in a resume."""
    tree = rows_tree(tmp_path / "rows", made_up_pairs(10))
    given = {"model": theta, "tokens": tree}, sft_config(epochs=3.0)
    run = job_at(tmp_path / "uninterrupted")
    sft.run(*given, run)
    with pytest.raises(Stopped):
        sft.run(*given, stopping(job_at(tmp_path / "stopped", checkpoint_every=2), "sft", 5))
    rerun = job_at(tmp_path / "stopped", checkpoint_every=2)
    sft.run(*given, rerun)
    assert content(rerun.out) == content(run.out)


@pytest.mark.parametrize("step", [1, 3, 5, 8])
def test_resume_stopped_at_any_step_same_bytes(spin_run, uninterrupted, step) -> None:
    """Catches a resume that is right at one step only, or not at the end of an epoch (step 3)."""
    with pytest.raises(Stopped):
        spin_run("run", stop_at=step, every=1)
    assert spin_run("run", every=1) == uninterrupted


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", "flip"),
        ("optimizer.safetensors", "flip"),
        ("state.json", "flip"),
        ("model.safetensors", "cut"),
        ("state.json", "gone"),
    ],
)
def test_resume_damaged_checkpoint_older_one_taken(spin_run, uninterrupted, tmp_path, caplog, name, damage) -> None:
    """Catches damaged weights, moments or metrics that are trained on, and a crash in place of the older checkpoint."""
    with pytest.raises(Stopped):
        spin_run("run", stop_at=8)
    checkpoints = sorted((tmp_path / "run" / "scratch").glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == ["checkpoint-00000004", "checkpoint-00000006"]
    victim = checkpoints[1] / name
    data = bytearray(victim.read_bytes())
    data[-20] ^= 1
    {"flip": lambda: victim.write_bytes(data), "cut": lambda: victim.write_bytes(data[:-9]), "gone": victim.unlink}[
        damage
    ]()
    with caplog.at_level(logging.WARNING):
        assert spin_run("run") == uninterrupted
    assert "checkpoint-00000006 is damaged" in caplog.text


def test_resume_half_written_checkpoint_ignored_and_removed(spin_run, uninterrupted, tmp_path) -> None:
    """Catches leftovers of a kill during the write that are read, or stay for ever."""
    left = tmp_path / "run" / "scratch" / "tmp-left"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert spin_run("run") == uninterrupted
    assert not left.exists()


def test_resume_checkpoint_of_a_longer_run_refused(spin_run) -> None:
    """Catches scratch of another run that is published as this one's result."""
    with pytest.raises(Stopped):
        spin_run("run", stop_at=8)
    with pytest.raises(StageFailed, match="cannot be of this run"):
        spin_run("run", config=finetune_config(schedule_epochs=3.0, stop_epoch=1.0))


def test_training_that_is_asked_to_end_writes_a_checkpoint_first(tmp_path, inputs, uninterrupted):
    """Catches SIGTERM that costs all steps since the last checkpoint, a checkpoint that another run cannot go on from,
    and a training that is all but done and is ended nevertheless."""
    job = job_at(tmp_path, DIGESTS, checkpoint_every=0)
    job.send = lambda event: job.ending.set() if event["label"] == "finetune" and event["done"] == 4 else None
    with pytest.raises(errors.Stopped, match=r"step 4 of 9; its checkpoint is written") as ended:
        finetune.run(inputs, CONFIG, job)
    assert ended.value.exit_code == 75
    assert [path.name for path in job.scratch.iterdir()] == ["checkpoint-00000004"]
    job = job_at(tmp_path, DIGESTS, checkpoint_every=0)
    job.send = lambda event: job.ending.set() if event["label"] == "finetune" and event["done"] == 9 else None
    assert finetune.run(inputs, CONFIG, job)["resumed_at"] == 4
    assert content(job.out) == uninterrupted
