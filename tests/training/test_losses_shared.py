"""Losses that read more than pairs, by two processes of one model."""

from collections.abc import Callable
from pathlib import Path

import pytest
from launched import runtime, spec, start
from loss_data import SETTINGS, played, trees
from training_data import finetune_config, job_at, metrics_of

from spin_core.stages import finetune

__all__ = ["played", "trees"]  # fixtures


@pytest.mark.full
@pytest.mark.parametrize(("name", "sharding"), [("tspin against θ_t", "fsdp2"), ("dft", "none"), ("tpaw", "none")])
def test_finetune_by_two_processes_gives_the_curve_of_one(
    name: str, sharding: str, played: Callable, tmp_path: Path
) -> None:
    """Catches a process that takes reference log-probs of its own examples' places for those of the batch's, and groups
    of unlike numbers of answers that two processes cut otherwise."""
    inputs, digests = played(name)
    config = finetune_config(loss=name.partition(" ")[0], schedule_epochs=1.0, **SETTINGS[name])
    one = job_at(tmp_path / "one", digests)
    finetune.run(inputs, config, one)
    two = start(2)
    try:
        job = spec("finetune", config, inputs, digests, tmp_path / "two", runtime(2, sharding))
        two.run(job, lambda event: None, timeout=240)
    finally:
        two.kill()
    for mine, theirs in zip(metrics_of(one.out), metrics_of(tmp_path / "two" / "out"), strict=True):
        assert theirs == pytest.approx(mine, rel=2e-3, abs=2e-4)
