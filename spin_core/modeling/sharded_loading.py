"""A sharded model: built without its weights, which process 0 then reads and hands out (torch module).

Not here: training (`training.zero`, `training.fsdp`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import init_empty_weights
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import distribute_tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from spin_core.errors import BadInput
from spin_core.modeling import loading
from spin_core.runtime import process_group


def empty_model(path: Path) -> PreTrainedModel:
    """The architecture in `path`, its weights not read. Raises BadInput as `load_model` for what it may not be."""
    how = loading.architecture(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    with no_init_weights():  # of weights that have no rows here, transformers could not set that of the padding to 0
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **how)
    model.tie_weights()
    return model


def fill(
    model: PreTrainedModel, path: Path, put: Callable[[str, Tensor, Tensor | None], None], train: bool,
    device: torch.device,
) -> PreTrainedModel:  # fmt: skip
    """Puts the weights in `path` into the shards of `model`, and its buffers on `device`. `put` sets one weight: its
    name, the parameter, and on process 0 its value; every process calls it, in the same order. Process 0 holds all of
    them meanwhile, in the host's memory and in the dtype of its files; the others wait."""
    source: Any = loading.load_model(path, "cpu", loading.source_dtype(path)) if process_group.rank() == 0 else None
    values = dict(source.named_parameters()) if source else {}
    for name, parameter in list(model.named_parameters()):
        put(name, parameter, values[name].detach() if values else None)
    held = dict(source.named_buffers()) if source else {}
    for name, buffer in list(model.named_buffers()):
        owner, _, own = name.rpartition(".")
        here = model.get_submodule(owner)._buffers[own] = (held[name] if held else buffer).to(device)
        dist.broadcast(here, 0)
    # How transformers changed names and shapes of the files' weights, so that it can undo it when they are saved.
    if source is not None and hasattr(source, "_weight_conversions"):
        model._weight_conversions = source._weight_conversions  # type: ignore[assignment]
    loading.no_dropout(model)
    model.sharded = True  # type: ignore[assignment]
    return model.requires_grad_(train).train(train)


def load(path: Path, device: torch.device, dtype: torch.dtype = torch.float32, train: bool = False) -> PreTrainedModel:
    """The model in `path`, sharded over the processes by FSDP2, on `device`; `dtype` is that of the shards. Raises
    BadInput on a CPU where this torch has no FSDP2 for it (2.6)."""
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise BadInput(
            f"runtime.compute.sharding: torch {torch.__version__} has no fsdp2 for a CPU; take zero3 or "
            "none, or a newer torch."
        )
    process_group.begin()
    with init_empty_weights(include_buffers=False):
        model = empty_model(path)
    model.tie_weights()  # again: every weight was replaced when it was registered
    mesh = init_device_mesh(device.type, (process_group.world(),))
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    names: dict[Tensor, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)  # tied weights have several
    shards: dict[str, Tensor] = {}

    def put(name: str, parameter: Any, value: Tensor | None) -> None:
        given = torch.empty(parameter.shape, dtype=dtype, device=device) if value is None else value.to(device, dtype)
        own = torch.nn.Parameter(distribute_tensor(given, parameter.device_mesh, parameter.placements))
        shards.update(dict.fromkeys(names[parameter], own))

    fill(model, path, put, train, device)
    model.load_state_dict(shards, strict=False, assign=True)
    # `model.inside(f)` gives `f()`, run as its forward pass is: with its outermost weights gathered.
    model.inside = lambda compute: compute()  # type: ignore[assignment]
    register_fsdp_forward_method(model, "inside")
    return model
