"""Length, learning rate and data order of a training run."""

import math

import numpy as np
import pytest
import torch
from transformers import get_scheduler

from spin_core.config.finetune import Finetune
from spin_core.training.loop import TrainingPlan


def plan(**changes) -> TrainingPlan:
    of_run = {name: changes.pop(name, default) for name, default in (("seed", 3), ("examples", 10))}
    part = {"lr": 5e-7, "warmup_ratio": 0.1, "schedule_epochs": 6.0, "stop_epoch": 2.0, "global_batch": 4}
    return TrainingPlan(Finetune(**{**part, **changes}), **of_run)


@pytest.mark.parametrize("changes", [{}, {"warmup_ratio": 0.0}, {"schedule_epochs": 0.5}, {"warmup_ratio": 0.99}])
def test_lr_any_schedule_equals_transformers_linear(changes) -> None:
    """Catches a warm-up rounded down, one that starts at 1, a decay that ends one step early or late."""
    own = plan(**changes)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=own.part.lr)
    warmup = math.ceil(own.schedule_steps * own.part.warmup_ratio)
    scheduler = get_scheduler("linear", optimizer, warmup, own.schedule_steps)
    for step in range(own.schedule_steps + 1):
        assert own.lr_at(step) == scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()


def test_lr_schedule_6_stop_2_ends_at_74_percent() -> None:
    """Catches a schedule laid out for the stop epoch: the published scripts schedule 6, stop at 2, at ~74 % of peak."""
    own = plan(examples=49792, global_batch=64)
    assert own.stop_step == 2 * 778
    assert own.schedule_steps == 6 * 778
    assert own.lr_at(own.stop_step) / own.part.lr == pytest.approx(0.74, abs=0.005)


def test_order_every_epoch_sees_every_example_once() -> None:
    """Catches examples dropped at the end of an epoch, or one order for all epochs."""
    own = plan()
    epochs = [np.concatenate([own.examples_of(3 * epoch + i) for i in range(3)]) for epoch in range(3)]
    assert [len(own.examples_of(i)) for i in range(4)] == [4, 4, 2, 4]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert tuple(plan(seed=4).examples_of(0)) != tuple(epochs[0][:4])
