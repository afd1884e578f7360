"""How the weights move when several processes train one model: the `Strategy` protocol (torch module).

Three there are: `ddp` (all weights in each process), `zero` (DeepSpeed's ZeRO) and `fsdp` (torch's FSDP2), which shard
them. What a stage computes does not depend on how many processes share the work, but for the rounding of sums.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from spin_core.errors import StageFailed
from spin_core.modeling.logprobs import Policy

Metrics = dict[str, float]


class Strategy(Protocol):
    """How gradients are summed over processes, weights are moved, and all of it is saved and restored."""

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

    def full_weights(self, dtype: torch.dtype) -> dict[str, Tensor] | None:
        """All weights by name on process 0 ({} on the others), of a model whose weights are sharded; None where the
        model of each process has them."""


def apply_gradients(optimizer: torch.optim.Optimizer, lr: float, norm: float) -> None:
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
