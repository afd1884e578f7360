"""Training with weights sharded by torch's own FSDP2 (`fully_shard`) (torch module).

Each decoder layer is gathered when its turn comes and freed again; embedding, last norm and output layer stay gathered
through a pass. Weights and sums are float32, as elsewhere.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from spin_core.modeling.logprobs import Policy
from spin_core.runtime import process_group
from spin_core.training import checkpoint
from spin_core.training.strategy import Metrics, apply_gradients


class Fsdp2:
    """A `Strategy`. The model is one of `sharded_loading.load`."""

    def __init__(self, policy: Policy, optimizer: torch.optim.Optimizer, max_norm: float):
        self.policy, self.optimizer, self.max_norm = policy, optimizer, max_norm

    def logps(self, batch: Any, last: bool) -> Tensor:
        result: Tensor = self.policy(batch)
        return result

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()  # reduces at once: gradients that wait would be unsharded ones

    def step(self, lr: float) -> float:
        norm: Any = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_norm or math.inf)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        apply_gradients(self.optimizer, lr, norm)
        return norm

    def save(self, scratch: Path, history: list[Metrics]) -> None:
        weights = {name: _local(value) for name, value in checkpoint.weights_of(self.policy.model).items()}
        moments = checkpoint.optimizer_tensors(self.optimizer)
        mine = {name: _local(value) for name, value in moments.items()}
        checkpoint.save(scratch, weights, mine, history, sharded=True)

    @torch.no_grad()
    def restore(self, scratch: Path) -> list[Metrics]:
        newest = checkpoint.newest(scratch, sharded=True)
        if newest is None:
            return []
        weights, moments = checkpoint.tensors_of(newest, sharded=True)
        for name, parameter in self.policy.model.named_parameters():
            _local(parameter).copy_(weights[name])
        state = checkpoint.numbered(moments)
        for i, parameter in enumerate(self.optimizer.param_groups[0]["params"]):
            at = {}
            for name, value in state[i].items():
                at[name] = value if name == "step" else _like(parameter, value)
            self.optimizer.state[parameter] = at
        return checkpoint.history_of(newest)

    def full_weights(self, dtype: torch.dtype) -> dict[str, Tensor] | None:
        weights = {}
        for name, parameter in self.policy.model.named_parameters():
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if process_group.rank() == 0:
                weights[name] = full.detach().to("cpu", dtype, copy=True)
        return weights


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _like(parameter: Tensor, local: Tensor) -> Tensor:
    """An optimiser's moment as it lies beside its weight."""
    if not isinstance(parameter, DTensor):
        return local.to(parameter.device)
    return DTensor.from_local(
        local.to(parameter.device), parameter.device_mesh, parameter.placements,
        shape=parameter.shape, stride=parameter.stride(),
    )  # fmt: skip
