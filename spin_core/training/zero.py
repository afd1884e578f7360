"""Training with DeepSpeed's ZeRO (arXiv 1910.02054): optimiser state, gradients and weights sharded (torch module).

Stage 1 shards the optimiser's state, 2 the gradients too, 3 the weights too; with `offload` the state, or the weights
too, are in the host's memory. The optimiser is torch's own and the weights are float32: the numbers are those of one
process but for the order of sums. What it is *not*: no DeepSpeed checkpoints (they are pickled), no mixed precision of
its own (the policy's autocast is the same for scoring and training).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spin_core.config.runtime import Compute
from spin_core.errors import BadInput, StageFailed
from spin_core.modeling.logprobs import Policy
from spin_core.modeling.sharded_loading import empty_model, fill
from spin_core.runtime import process_group
from spin_core.training.checkpoint import Metrics
from spin_core.training.strategy import Strategy


def settings(compute: Compute, max_norm: float, device: str) -> dict[str, Any]:
    """DeepSpeed's configuration. One example is one micro-batch: the training loop says itself where a step ends."""
    stage = int(compute.sharding[-1])
    place = {"device": "cpu", "pin_memory": device == "cuda"}
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": device == "cuda"}
    zero["memory_efficient_linear"] = False  # would replace torch's own for good
    if compute.offload != "none":
        zero["offload_optimizer"] = place
    if compute.offload == "weights":
        zero["offload_param"] = place
    return {
        "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "gradient_clipping": max_norm,
        "zero_allow_untested_optimizer": True,  # RMSprop
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }  # fmt: skip


def begin(device: torch.device) -> Any:
    """The deepspeed module, its communication on torch's process group. Raises BadInput where it is not installed."""
    here = str(torch.cuda.current_device()) if device.type == "cuda" else "0"
    for name, value in {"DS_ACCELERATOR": device.type, "LOCAL_RANK": here}.items():  # as a launcher would
        os.environ.setdefault(name, value)
    try:
        import deepspeed
    except ImportError:
        raise BadInput(
            "runtime.compute.sharding: zero1, zero2 and zero3 need the package deepspeed, which is not installed; "
            "`pip install deepspeed`, or take fsdp2"
        ) from None
    process_group.begin()
    if (
        device.type == "cpu"
    ):  # a reduction of its own, compiled first: 45 s and a compiler that may be missing; gloo does
        import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed


def load(path: Path, compute: Compute, device: torch.device) -> PreTrainedModel:
    """The model in `path` for training, sharded over the processes: process 0 reads it, and no other ever holds
    more than one full weight of it."""
    deepspeed = begin(device)
    # Without a dtype: DeepSpeed 0.19 takes float32 for "not half precision, so bfloat16".
    with deepspeed.zero.Init(config_dict_or_path=settings(compute, 0.0, device.type)):
        model = empty_model(path)

    def put(name: str, parameter: Tensor, value: Tensor | None) -> None:
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if value is not None:
                parameter.data.copy_(value)

    return fill(model, path, put, True, device)


def wrap(policy: Policy, optimizer: torch.optim.Optimizer, compute: Compute, max_norm: float) -> tuple[Any, Any]:
    """DeepSpeed's engine and optimiser. The model is one of `load` (stage 3), or has all weights in each process."""
    deepspeed = begin(policy.model.device)
    output: Any = policy.model.get_output_embeddings()
    if compute.sharding == "zero3" and output is not None:  # read outside of its layer's forward, see `Policy`
        deepspeed.zero.register_external_parameter(policy, output.weight)
    conf = settings(compute, max_norm, policy.model.device.type)
    engine, wrapped, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=conf)
    return engine, wrapped


class Zero(Strategy):
    """A strategy whose `wrapped` and `optimizer` are those of `wrap`."""

    def logps(self, batch: Any, last: bool) -> Tensor:
        self.wrapped.set_gradient_accumulation_boundary(last)
        result: Tensor = self.wrapped(batch)
        return result

    def backward(self, loss: Tensor, last: bool) -> None:
        self.wrapped.backward(loss)
        if not last:
            self.wrapped.step()  # counts the pass; the weights move at the last one

    def move(self, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.wrapped.step()
        norm = float(self.wrapped.get_global_grad_norm())
        if not math.isfinite(norm):
            raise StageFailed(f"the gradient norm is {norm}")
        return norm

    def held(self) -> tuple[dict[str, Tensor], dict[Tensor, Any]]:
        """By number: this process's float32 weights, one flat tensor a group of the optimiser."""
        sharded = self.wrapped.zero_optimization_partition_weights()
        name = "fp32_partitioned_groups_flat" if sharded else "single_partition_of_fp32_groups"
        return {str(i): flat for i, flat in enumerate(getattr(self.optimizer, name))}, self.optimizer.optimizer.state

    @torch.no_grad()
    def restore(self, scratch: Path) -> list[Metrics]:
        if not (history := super().restore(scratch)):
            return []
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

        weights_sharded = self.wrapped.zero_optimization_partition_weights()
        trained: Any = self.policy.parameters()
        for parameter in trained:
            if parameter.requires_grad and weights_sharded:
                parameter.ds_tensor.data.copy_(safe_get_local_fp32_param(parameter))
            elif parameter.requires_grad:
                parameter.data.copy_(safe_get_full_fp32_param(parameter))
        if weights_sharded and (kept := self.optimizer.persistent_parameters):  # small ones that stay gathered
            kept[0].partition(kept)
        return history

    @contextmanager
    def gathered(self, parameter: Tensor) -> Iterator[Tensor]:
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter
