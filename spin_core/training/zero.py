"""Training with DeepSpeed's ZeRO (arXiv 1910.02054): optimiser state, gradients and weights sharded (torch module).

Stage 1 shards the optimiser's state, 2 the gradients too, 3 the weights too; with `offload` the state, or the weights
too, are in the host's memory. The optimiser is torch's own and the weights are float32: the numbers are those of one
process but for the order of sums. What it is *not*: no DeepSpeed checkpoints (they are pickled), no mixed precision of
its own (the policy's autocast is the same for scoring and training).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spin_core.config.runtime import Compute
from spin_core.errors import BadInput
from spin_core.modeling.logprobs import Policy
from spin_core.modeling.sharded_loading import empty_model, fill
from spin_core.runtime import process_group
from spin_core.training import checkpoint
from spin_core.training.strategy import Metrics, check_norm

FLAT = {1: "single_partition_of_fp32_groups", 2: "single_partition_of_fp32_groups", 3: "fp32_partitioned_groups_flat"}
"""Where DeepSpeed's optimiser of a stage has this process's float32 weights, one flat tensor a group."""


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


class Zero:
    """A `Strategy`. The model is one of `load` (stage 3), or has all weights in each process."""

    def __init__(self, policy: Policy, optimizer: torch.optim.Optimizer, compute: Compute, max_norm: float):
        device = policy.model.device
        deepspeed = begin(device)
        self.policy, self.stage = policy, int(compute.sharding[-1])
        output: Any = policy.model.get_output_embeddings()
        if self.stage == 3 and output is not None:  # read outside of its layer's forward, see `Policy`
            deepspeed.zero.register_external_parameter(policy, output.weight)
        conf = settings(compute, max_norm, device.type)
        self.engine, self.optimizer, *_ = deepspeed.initialize(model=policy, optimizer=optimizer, config=conf)

    def logps(self, batch: Any, last: bool) -> Tensor:
        self.engine.set_gradient_accumulation_boundary(last)
        result: Tensor = self.engine(batch)
        return result

    def backward(self, loss: Tensor, last: bool) -> None:
        self.engine.backward(loss)
        if not last:
            self.engine.step()  # counts the pass; the weights move at the last one

    def step(self, lr: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        norm = float(self.engine.get_global_grad_norm())
        check_norm(norm)
        return norm

    def save(self, scratch: Path, history: list[Metrics]) -> None:
        weights = {str(i): shard.detach().cpu() for i, shard in enumerate(self._flat())}
        state = self.optimizer.optimizer.state
        moments = checkpoint.flat((i, state[shard]) for i, shard in enumerate(self._flat()))
        checkpoint.save(scratch, weights, moments, history, sharded=True)

    @torch.no_grad()
    def restore(self, scratch: Path) -> list[Metrics]:
        newest = checkpoint.newest(scratch, sharded=True)
        if newest is None:
            return []
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_local_fp32_param

        weights, moments = checkpoint.tensors_of(newest, sharded=True)
        state = checkpoint.numbered(moments)
        for i, shard in enumerate(self._flat()):
            shard.data.copy_(weights[str(i)])
            at = {name: value if name == "step" else value.to(shard.device) for name, value in state[i].items()}
            self.optimizer.optimizer.state[shard] = at
        trained: Any = self.policy.parameters()
        for parameter in trained:
            if parameter.requires_grad and self.stage == 3:
                parameter.ds_tensor.data.copy_(safe_get_local_fp32_param(parameter))
            elif parameter.requires_grad:
                parameter.data.copy_(safe_get_full_fp32_param(parameter))
        if self.stage == 3 and (kept := self.optimizer.persistent_parameters):  # small ones that stay gathered
            kept[0].partition(kept)
        return checkpoint.history_of(newest)

    def _flat(self) -> list[Tensor]:
        shards: list[Tensor] = getattr(self.optimizer, FLAT[self.stage])
        return shards

    def full_weights(self, dtype: torch.dtype) -> dict[str, Tensor] | None:
        if self.stage < 3:
            return None
        import deepspeed

        weights = {}
        for name, parameter in self.policy.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if process_group.rank() == 0:
                    weights[name] = parameter.detach().to("cpu", dtype, copy=True)
        return weights
