"""A kept vLLM engine, really run: whatever of a reload is wrong is caught, and what is right costs little."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spin_core.engines.kept import TOLERANCE
from spin_core.job import Job
from spin_core.runtime import vllm_env
from spin_core.stages import demo_model

pytestmark = [
    pytest.mark.skipif(not vllm_env.place("").exists(), reason="vLLM's environment is not there: make vllm-env"),
    pytest.mark.timeout(900),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What `kept_faults` prints of two models as far apart as a short training leaves them."""
    old, new = (tmp_path_factory.mktemp(name) for name in ("old", "new"))
    demo_model.run({}, demo_model.Config(seed=5), Job(out=old, scratch=old))
    config = json.loads((old / "config.json").read_text())
    (old / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    shutil.copytree(old, new, dirs_exist_ok=True)
    torch.manual_seed(0)
    weights = {name: one + 5e-5 * torch.randn_like(one) for name, one in load_file(old / "model.safetensors").items()}
    save_file(weights, new / "model.safetensors", metadata={"format": "pt"})
    command = [str(vllm_env.place("")), "-P", "-m", "tests.stages.kept_faults", str(old), str(new)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=old, check=False, timeout=850)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_every_planted_fault_is_caught_in_one_sentence(reported) -> None:
    """Catches stale weights that answer: a reload that does nothing at all or after the old weights were taken away, a
    single tensor that is not read (also of those that vLLM packs for a CPU's kernels, and parts of fused ones), and
    keys and values that the old weights computed."""
    faults, passed = {one["fault"]: one["raised"] for one in reported[:-1]}, []
    for name, sentence in faults.items():
        print(f"{name}: {sentence}")
        passed += [] if sentence else [name]
        assert len(sentence.splitlines()) <= 1 and len(sentence) < 500
    assert len(faults) > 20 and not passed


def test_right_weights_answer_as_the_model_does_and_soon(reported) -> None:
    """Catches a guard that refuses right weights, answers of the model before, a tolerance without room on either
    side, and a reload that takes as long as a start (aim: a third)."""
    done = reported[-1]
    print({name: done[name] for name in ("gap", "gap_stale", "started", "took", "compared")})
    assert done["reloaded"] == 1.0 and done["first"] != done["second"]
    assert done["gap"] < TOLERANCE["float32"] / 10 and done["gap_stale"] > TOLERANCE["float32"]
    assert "model.embed_tokens.weight" in done["compared"]
    assert done["took"][1] < done["started"][1] / 3, "CPU seconds"
