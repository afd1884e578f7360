"""A model that no process holds whole: built without its weights, which process 0 then reads and hands out (torch
module).

Not here: how the parts are made and put together (`zero`, `fsdp`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from spin_core.modeling import loading
from spin_core.runtime import process_group

Put = Callable[[str, Tensor, Tensor | None], None]
"""Sets one weight: its name, the parameter, and on process 0 its value. Every process calls it, in the same order."""


def empty_model(path: Path) -> PreTrainedModel:
    """The architecture in `path`, its weights not read. Raises BadInput as `load_model` for what it may not be."""
    how = loading.architecture(path)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    with no_init_weights():  # of weights that have no rows here, transformers could not set that of the padding to 0
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **how)
    model.tie_weights()
    return model


def fill(model: PreTrainedModel, path: Path, put: Put, train: bool, device: torch.device) -> PreTrainedModel:
    """Puts the weights in `path` into the parts of `model`, and its buffers on `device`. Process 0 holds them whole
    meanwhile, in the host's memory and in the dtype of its files; the others wait."""
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
    model.in_parts = True  # type: ignore[assignment]
    return model.requires_grad_(train).train(train)
