"""Several processes that train together."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_data import DIGESTS, finetune_config, job_at, made_up_pairs, metrics_of, pairs_tree, scored

from spin_core.stages import finetune

HERE = Path(__file__).resolve().parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_finetune_two_processes_same_result_as_one(tmp_path, theta) -> None:
    """Catches metrics of one rank only, gradients averaged where the sum is meant, pairs doubled to fill up a process.

    Five pairs in batches of 4: the second global batch has one pair, so one process has none of its own.
    """
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(5), [])
    config = finetune_config(lr=1e-5)
    logps = scored(tmp_path / "score", theta, tree, config)
    alone = job_at(tmp_path / "alone", DIGESTS)
    finetune.run({"model": theta, "pairs": [tree], "logps": [logps]}, config, alone)

    common = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]), "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, str(HERE / "ddp_child.py"), *map(str, (theta, tree, logps, tmp_path / "two"))]
    children = [
        subprocess.Popen(command, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        said = [child.communicate(timeout=120)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], said

    two = tmp_path / "two" / "out"
    for a, b in zip(metrics_of(alone.out), metrics_of(two), strict=True):
        assert a["pairs"] == b["pairs"]
        for name in ("loss", "rewards/margins", "logps/real", "grad_norm"):
            assert a[name] == pytest.approx(b[name], abs=2e-4, rel=1e-4), name
    first, second = (load_file(out / "model.safetensors") for out in (alone.out, two))
    difference = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert (difference > 1e-6).double().mean() < 1e-3
    checkpoints = [path.name for path in (tmp_path / "two" / "scratch").iterdir()]
    assert checkpoints == ["checkpoint-00000002"]
