"""The GPU proof's chain of stages gives each stage the settings that a run gives it: mypy reads no tests."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from flows.spin import dag
from spin_core.config.base import Section
from spin_core.config.profile import load_profile
from spin_core.job import Inputs
from spin_core.runtime.child import Children
from spin_core.store.store import Store
from tasks.runner.planning import Pending, Planner
from tasks.runner.run import Run
from tests.gpu.chain import Chain

LEFT_OUT = ("demo_rows", "demo_model", "report")  # of a run; the proof has sources and a report of its own
Configs = dict[str, list[Section]]
"""Stage → what its steps were given, in order."""


class Asked(Planner):
    """Keeps the config of every step that a run asks for; knows nothing of what any will write."""

    def __init__(self) -> None:
        super().__init__()
        self.configs: Configs = {}

    def step(self, run, step, inputs):
        if step.place.role != "control" and step.stage not in LEFT_OUT:
            self.configs.setdefault(step.stage, []).append(step.config)
        return Pending(step.title)


class Named(Chain):
    """A chain that keeps the config of every step and computes none."""

    configs: Configs

    def step(self, name: str, module: ModuleType, config: Section, inputs: Inputs, group: str = "") -> Path:
        self.configs.setdefault(module.NAME, []).append(config)
        self.trees[name] = self.folder
        return self.folder


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ([], 9),
        (["finetune.loss=hinge", "finetune.length_normalised=true", "history=1"], 9),
        (["finetune.loss=tspin", "finetune.beta=", "overrides={1: {finetune: {lr: 1.0e-5}}}"], 8),  # scores nothing
    ],
)
def test_chain_gives_each_stage_what_its_task_gives_it(tmp_path, settings, stages) -> None:
    """Catches a proof on a GPU of other settings than a run's: a field of a stage's Config that only the task sets."""
    config, base = load_profile("demo-tasks", settings)
    asked = Asked()
    dag(Run(config, Store(tmp_path / "store"), Children(1), base, asked))
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "0").touch()  # a plan that knows no rows has one shard
    chain = Named(config, tmp_path)
    chain.configs = {}
    chain.start({"source": tmp_path}, tmp_path)
    chain.measure(0)
    for t in range(config.iterations):
        chain.answer(t)
        chain.train(t)
        chain.measure(t + 1)
    assert chain.configs == asked.configs and len(asked.configs) == stages
