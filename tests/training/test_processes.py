"""Several processes that train together."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_data import DIGESTS, finetune_config, has_begun, job_at, made_up_pairs, metrics_of, pairs_tree, scored

from spin_core.data.rows import Pair, answer_id
from spin_core.stages import finetune

HERE = Path(__file__).resolve().parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


SETTINGS = [
    {"lr": 1e-5}, {"lr": 1e-3, "lora": {"rank": 4}}, {"lr": 1e-3, "order": "prompts"},
    {"lr": 1e-3, "order": "prompts", "lora": {"rank": 4}},
]  # fmt: skip


def several_answers() -> list[Pair]:
    """Five rows of three pairs each; one pair of each is of identical answers, of the last row all three."""
    pairs = made_up_pairs(5)
    second = [replace(p, id=answer_id(p.id, 1), generated=p.real) for p in pairs]
    third = [replace(p, id=answer_id(p.id, 2), generated=f"{p.generated} Or so.") for p in pairs]
    same = [replace(p, generated=p.real, finish="stop") for p in (pairs[4], third[4])]
    return [*pairs[:4], same[0], *(replace(p, finish="stop") for p in second), *third[:4], same[1]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, theta) -> list[dict]:
    """Of each of the settings."""
    root, made = tmp_path_factory.mktemp("inputs"), []
    for name, pairs in (("pairs", made_up_pairs(5)), ("several", several_answers())):
        tree = pairs_tree(root / name, pairs, [])
        logps = scored(root / f"score {name}", theta, tree, finetune_config())
        made.append({"model": theta, "pairs": [tree], "logps": [logps]})
    return [made["order" in settings] for settings in SETTINGS]


@pytest.fixture(scope="module")
def two(tmp_path_factory, inputs) -> Path:
    """Where two processes have trained, once for each of the settings."""
    place = tmp_path_factory.mktemp("two")
    common = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)]), "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    runs = [
        (str(own["pairs"][0]), str(own["logps"][0]), settings) for own, settings in zip(inputs, SETTINGS, strict=True)
    ]
    command = [sys.executable, str(HERE / "ddp_child.py"), str(inputs[0]["model"]), str(place), json.dumps(runs)]
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
    summary = finetune.run(inputs[number], finetune_config(**SETTINGS[number]), alone)
    passes = [json.loads((place / f"passes-{rank}.json").read_text()) for rank in (0, 1)]
    if "order" not in SETTINGS[number]:
        # Two steps of four pairs (two for each process, in two passes), two of one (one process fills up).
        assert passes == [[[2, True]] * 6] * 2
    else:  # fifteen pairs in four steps, of which one has the row that costs nothing alone or beside another
        assert (summary["pairs"], summary["groups"], summary["identical"]) == (15, 5, 7)
        assert len(passes[0]) == len(passes[1]) and all(packed for own in passes for _, packed in own)
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
    checkpoints = sorted(path.name for path in (place / "scratch").iterdir())
    assert checkpoints == [f"checkpoint-{step:08}" for step in ((4, 6) if summary["steps"] == 8 else (2,))]
