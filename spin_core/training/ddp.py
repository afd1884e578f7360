"""Training with a whole model in every process: one process, or several under accelerate (DDP) (torch module).

A `Strategy` is how the weights move: `zero` and `fsdp` are the others, which hold only a part of them each.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from spin_core.errors import StageFailed
from spin_core.modeling.logprobs import Policy
from spin_core.runtime import process_group
from spin_core.training import checkpoint

Metrics = dict[str, float]


class Strategy(Protocol):
    """How gradients are summed over processes, weights are moved, and all of it is kept and given back."""

    policy: Policy

    def logps(self, batch: Any, last: bool) -> Tensor:
        """The policy's forward pass, [S]; `last`: of the passes of this optimiser step."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the mean over processes of the gradients of `loss`."""

    def step(self, lr: float) -> float:
        """Clips, moves the weights, forgets the gradients; the norm before clipping. Raises StageFailed where that is
        not finite."""

    def save(self, scratch: Path, history: list[Metrics]) -> None:
        """A checkpoint; every process calls it."""

    def restore(self, scratch: Path) -> list[Metrics]:
        """Puts the newest sound checkpoint in place: the metrics of its steps, [] where there is none."""

    def whole(self, dtype: torch.dtype) -> dict[str, Tensor] | None:
        """All weights by name on process 0 ({} on the others), for a model that no process holds whole; None where each
        does."""


class Whole:
    """A `Strategy`: optimiser and weights in each process. With one process the output layer's gradient is added in
    place."""

    def __init__(self, policy: Policy, optimizer: torch.optim.Optimizer, accelerator: Accelerator, max_norm: float):
        if accelerator.num_processes == 1:
            policy.own_gradients()
        self.policy, self.accelerator, self.max_norm = policy, accelerator, max_norm
        self.wrapped, self.optimizer = accelerator.prepare(policy, optimizer)

    def logps(self, batch: Any, last: bool) -> Tensor:
        with self._alone(last):
            result: Tensor = self.wrapped(batch)
        return result

    def backward(self, loss: Tensor, last: bool) -> None:
        with self._alone(last):
            self.accelerator.backward(loss)

    def _alone(self, last: bool) -> Any:
        """DDP sums gradients at the step's last pass only; forward and backward pass must both know."""
        if last or self.accelerator.num_processes == 1:
            return nullcontext()
        return self.accelerator.no_sync(self.wrapped)

    def step(self, lr: float) -> float:
        norm = float(self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.max_norm or math.inf))
        move(self.optimizer, lr, norm)
        return norm

    def save(self, scratch: Path, history: list[Metrics]) -> None:
        if process_group.rank() == 0:
            weights, moments = checkpoint.weights_of(self.policy.model), checkpoint.optimizer_tensors(self.optimizer)
            checkpoint.save(scratch, weights, moments, history)

    def restore(self, scratch: Path) -> list[Metrics]:
        found = checkpoint.newest(scratch)
        return checkpoint.restore(found, self.policy.model, self.optimizer) if found else []

    def whole(self, dtype: torch.dtype) -> dict[str, Tensor] | None:
        return None


def move(optimizer: torch.optim.Optimizer, lr: float, norm: float) -> None:
    """One step of the optimiser, unless the gradients' norm is not finite (StageFailed); they are forgotten."""
    check_norm(norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()


def check_norm(norm: float) -> None:
    """Raise StageFailed for a gradient norm that is not finite."""
    if not math.isfinite(norm):
        raise StageFailed(f"the gradient norm is {norm}")
