"""The world of the harness's tests, made once: lm_eval reads its own index of tasks for 10 s."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spin_core.job import Job
from spin_core.stages import demo_model
from tests.stages.harness_world import CHOICE, TASKS, WRITE, by_hand, make_folder, run_stage


@pytest.fixture(scope="session")
def harness_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, tasks/ with two tasks, by_hand.json: lm_eval's own results, before the stage touched anything of it; and
    out/: the stage's."""
    root = tmp_path_factory.mktemp("harness")
    (root / "model").mkdir()
    shape = demo_model.Config(seed=5, context=256)
    demo_model.run({}, shape, Job(out=root / "model", scratch=root / "model"))
    folder = make_folder(root / "tasks", root / "model", {"choice.yaml": CHOICE, "write.yaml": WRITE})
    (root / "by_hand.json").write_text(json.dumps(by_hand(root / "model", folder), default=float))
    run_stage(root, root / "out", TASKS)
    return root
