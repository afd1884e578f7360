"""Several processes that train together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_data import DIGESTS, finetune_config, has_begun, job_at, made_up_pairs, metrics_of, pairs_tree, scored

from spin_core.stages import finetune

HERE = Path(__file__).resolve().parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


SETTINGS = [{"lr": 1e-5}, {"lr": 1e-3, "lora": {"rank": 4}}]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, theta) -> dict:
    root = tmp_path_factory.mktemp("inputs")
    tree = pairs_tree(root / "pairs", made_up_pairs(5), [])
    return {"model": theta, "pairs": [tree], "logps": [scored(root / "score", theta, tree, finetune_config())]}


@pytest.fixture(scope="module")
def two(tmp_path_factory, inputs) -> Path:
    """Where two processes have trained, once for each of the settings."""
    place = tmp_path_factory.mktemp("two")
    common = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]), "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    places = map(str, (inputs["model"], inputs["pairs"][0], inputs["logps"][0], place))
    command = [sys.executable, str(HERE / "ddp_child.py"), *places, json.dumps(SETTINGS)]
    children = [
        subprocess.Popen(command, env={**common, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    try:
        message = [child.communicate(timeout=120)[1] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], message
    return place


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_finetune_two_processes_same_result_as_one(tmp_path, inputs, two, number) -> None:
    """Catches metrics of one rank only, gradients averaged where the sum is meant, pairs doubled to fill up a process,
    and a wrapped policy that is quietly padded.

    Five pairs in batches of 4: the second global batch has one pair, so one process has none of its own.
    """
    alone, place = job_at(tmp_path / "alone", DIGESTS), two / str(number)
    finetune.run(inputs, finetune_config(**SETTINGS[number]), alone)
    # Two steps of four pairs (two for each process, in two passes), two of one (one process fills up).
    passes = [json.loads((place / f"passes-{rank}.json").read_text()) for rank in (0, 1)]
    assert passes == [[[2, True]] * 6] * 2
    assert any(map(has_begun, metrics_of(alone.out)))
    for a, b in zip(metrics_of(alone.out), metrics_of(place / "out"), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if name == "rewards/accuracies" and not has_begun(a):
                continue
            near = {"loss": {"abs": 5e-6, "rel": 0}, "rewards": {"abs": 2e-5, "rel": 0}, "grad_norm": {"rel": 1e-4}}
            exact = name in ("step", "epoch", "lr", "pairs")
            expected = value if exact else pytest.approx(value, **near.get(name.split("/")[0], {"abs": 2e-4, "rel": 0}))
            assert b[name] == expected, name
    first, second = (load_file(out / "model.safetensors") for out in (alone.out, place / "out"))
    difference = torch.cat([(first[name] - second[name]).abs().flatten() for name in first])
    assert (difference > 1e-6).double().mean() < 1e-3
    checkpoints = [path.name for path in (place / "scratch").iterdir()]
    assert checkpoints == ["checkpoint-00000002"]
