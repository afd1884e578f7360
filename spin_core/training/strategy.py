"""One optimiser step, by one process or by several that train one model; and its state, saved and restored (torch
module).

`Strategy` is by torch alone: all weights in each process (DDP), or, of a model of `sharded_loading.load`, a shard in
each (FSDP2: a decoder layer is gathered when its turn comes and freed again; embedding, last norm and output layer stay
gathered through a pass). DeepSpeed's is `zero`. Weights and sums are float32. What a stage computes does not depend on
how many processes share the work, but for the rounding of sums.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from spin_core.errors import StageFailed
from spin_core.modeling.logprobs import Policy
from spin_core.runtime import process_group
from spin_core.training import checkpoint
from spin_core.training.checkpoint import Metrics
from spin_core.training.objectives import Objective


@dataclass
class Strategy:
    """How gradients are summed over processes, weights are moved, and all of it is saved and restored."""

    policy: Policy
    wrapped: Any
    """The policy as its forward pass is called: itself, or what torch or DeepSpeed makes of it."""
    optimizer: Any
    max_norm: float
    micro_tokens: int
    sharded: bool
    """Whether each process has a part of the weights or of the optimiser's state that the others lack."""

    def step(self, objective: Objective, batch: np.ndarray, lr: float) -> Metrics:
        """Moves the weights by the mean loss over `batch`, divided by its true size; returns that mean and the figures.

        The result does not depend on `micro_tokens` or on the number of processes but for rounding. Raises StageFailed,
        before the weights are touched, when loss or gradient is not finite.
        """
        policy, processes = self.policy, process_group.world()
        size = sum(map(objective.size, batch.tolist()))
        groups = {i: group for i in batch.tolist() if (group := objective.group(i))}
        if not groups:  # the optimiser's state moves on also where all gradients are 0, so one pass is made
            groups = {i: objective.group(i, True) for i in batch.tolist()[:1]}
        mine = policy.passes(groups, self.micro_tokens, processes, in_step=True)[process_group.rank()]
        totals: dict[str, Tensor] = {}
        with policy.autocast():
            for number, (indices, counts) in enumerate(mine, 1):
                last = number == len(mine)
                logps = self.logps(policy.batch([groups[i] for i in indices]), last)
                weights = torch.full((len(indices),), float(counts), device=logps.device)
                loss, figures = objective.sums(logps, indices, weights)
                # Every strategy averages gradients over processes; the sum is wanted.
                self.backward(loss * (processes / size), last)
                for name, value in {"loss": loss, **figures}.items():
                    totals[name] = totals.get(name, 0) + value.detach().double()
        sums = dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True))
        everywhere = process_group.gather(sums)
        metrics = objective.means({name: sum(one[name] for one in everywhere) for name in sums}, size)
        if not math.isfinite(metrics["loss"]):
            raise StageFailed(f"loss is {metrics['loss']}")
        metrics["grad_norm"] = self.move(lr)
        return metrics

    def logps(self, batch: Any, last: bool) -> Tensor:
        """The policy's forward pass, [S]; `last`: of the passes of this optimiser step."""
        with self._unsynced(last):
            result: Tensor = self.wrapped(batch)
        return result

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the mean over processes of the gradients of `loss`."""
        with self._unsynced(last):
            loss.backward()  # FSDP2 reduces at once: gradients that wait would be unsharded ones

    def _unsynced(self, last: bool) -> AbstractContextManager:
        """DDP sums gradients at the step's last pass only; forward and backward pass must both know."""
        return nullcontext() if last else getattr(self.wrapped, "no_sync", nullcontext)()

    def move(self, lr: float) -> float:
        """Clips, moves the weights, forgets the gradients; the norm before clipping. Raises StageFailed where that is
        not finite."""
        norm: Any = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_norm or math.inf)
        norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        apply_gradients(self.optimizer, lr, norm)
        return norm

    def held(self) -> tuple[dict[str, Tensor], dict[Tensor, Any]]:
        """What this process has of the weights that training changes, by name, and the optimiser's state of each. Tied
        weights are named once; as the model still ties them, restoring one restores both."""
        named = self.policy.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}, self.optimizer.state

    def save(self, scratch: Path, history: list[Metrics]) -> None:
        """A checkpoint; every process calls it."""
        if self.sharded or process_group.rank() == 0:
            checkpoint.save(scratch, *self.held(), history, self.sharded)

    def restore(self, scratch: Path) -> list[Metrics]:
        """Puts the newest sound checkpoint in place: the metrics of its steps, [] where there is none."""
        return checkpoint.restore(scratch, *self.held(), self.sharded)

    def full_weights(self, dtype: torch.dtype) -> dict[str, Tensor] | None:
        """All weights by name on process 0 ({} on the others), of a model whose weights are sharded; None where the
        model of each process has them."""
        if not getattr(self.policy.model, "sharded", False):
            return None
        weights = {}
        for name, parameter in self.policy.model.named_parameters():
            with self.gathered(parameter) as full:
                if process_group.rank() == 0:
                    weights[name] = full.detach().to("cpu", dtype, copy=True)
        return weights

    def gathered(self, parameter: Tensor) -> AbstractContextManager[Tensor]:
        """The parameter with all its shards."""
        return nullcontext(parameter.full_tensor() if isinstance(parameter, DTensor) else parameter)


def apply_gradients(optimizer: torch.optim.Optimizer, lr: float, norm: float) -> None:
    """One step of the optimiser, unless the gradients' norm is not finite (StageFailed); they are forgotten."""
    if not math.isfinite(norm):
        raise StageFailed(f"the gradient norm is {norm}")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad()
