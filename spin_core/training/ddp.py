"""Training with all weights in every process: one process, or several under accelerate (DDP) (torch module)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from spin_core.modeling.logprobs import Policy
from spin_core.runtime import process_group
from spin_core.training import checkpoint
from spin_core.training.strategy import Metrics, apply_gradients


class Ddp:
    """A `Strategy`: optimiser and weights in each process. With one process the output layer's gradient is added in
    place."""

    def __init__(self, policy: Policy, optimizer: torch.optim.Optimizer, accelerator: Accelerator, max_norm: float):
        if accelerator.num_processes == 1:
            policy.own_gradients()
        self.policy, self.accelerator, self.max_norm = policy, accelerator, max_norm
        self.wrapped, self.optimizer = accelerator.prepare(policy, optimizer)

    def logps(self, batch: Any, last: bool) -> Tensor:
        with self._unsynced(last):
            result: Tensor = self.wrapped(batch)
        return result

    def backward(self, loss: Tensor, last: bool) -> None:
        with self._unsynced(last):
            self.accelerator.backward(loss)

    def _unsynced(self, last: bool) -> Any:
        """DDP sums gradients at the step's last pass only; forward and backward pass must both know."""
        if last or self.accelerator.num_processes == 1:
            return nullcontext()
        return self.accelerator.no_sync(self.wrapped)

    def step(self, lr: float) -> float:
        norm = float(self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.max_norm or math.inf))
        apply_gradients(self.optimizer, lr, norm)
        return norm

    def save(self, scratch: Path, history: list[Metrics]) -> None:
        if process_group.rank() == 0:
            weights, moments = checkpoint.weights_of(self.policy.model), checkpoint.optimizer_tensors(self.optimizer)
            checkpoint.save(scratch, weights, moments, history)

    def restore(self, scratch: Path) -> list[Metrics]:
        newest = checkpoint.newest(scratch)
        return checkpoint.restore(newest, self.policy.model, self.optimizer) if newest else []

    def full_weights(self, dtype: torch.dtype) -> dict[str, Tensor] | None:
        return None
