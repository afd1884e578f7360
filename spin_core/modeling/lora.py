"""Low-rank adapters (LoRA) by peft: put on a loaded model, and merged into a plain one (torch module).

Only the adapter's weights ask for gradients; otherwise the model is trained as any other. What it is *not*: no
training loop, no adapter on disk, no stack of adapters. Each iteration trains a fresh one on θ_t (B = 0, so the policy
begins as its opponent) and θ_{t+1} = W + alpha/rank · B·A is a plain model, which the next iteration generates, scores
and trains with.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spin_core.errors import BadInput
from spin_core.modeling.loading import load_model

if TYPE_CHECKING:
    from spin_core.config.finetune import Lora


def add_adapter(model: PreTrainedModel, part: Lora, seed: int) -> PeftModel:
    """peft's handle on `model`, which is changed in place: a new adapter in it is all that asks for gradients.

    A is drawn from `seed`, B is 0. torch's generators are left as they were. Raises BadInput for target modules that
    the model lacks.
    """
    if part.target_modules != "all-linear":
        # The output layer is none of the linear layers: it may be tied to the embeddings.
        known = {
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D) and module is not model.get_output_embeddings()
        }
        for target in part.target_modules:
            if not any(name == target or name.endswith(f".{target}") for name in known):
                some = ", ".join(sorted({name.rpartition(".")[2] for name in known})[:12])
                raise BadInput(
                    f"finetune.lora.target_modules: {type(model).__name__} has no linear layer {target!r} that takes "
                    f"an adapter; name some of {some}, or give all-linear"
                )
    config = LoraConfig(
        r=part.rank, lora_alpha=part.alpha, target_modules=part.target_modules, lora_dropout=0.0, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # peft draws on CPU, wherever the model is
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise BadInput(
                f"finetune.lora.target_modules: peft refuses them for {type(model).__name__} ({error})"
            ) from error


def seed_of(seed: int, digest: str) -> int:
    """Seed of an iteration's A: another one for each θ_t, so that the sum over iterations is not of one row space."""
    return int.from_bytes(hashlib.sha256(f"{seed} {digest}".encode()).digest()[:8])


@torch.no_grad()
def merged(trained: PreTrainedModel, source: Path, part: Lora) -> PreTrainedModel:
    """A plain model on CPU, float32: the weights in `source` plus the adapter that was trained on them.

    They are read again: a quantised `trained` holds them only roughly. Where the adapter adds 0 every bit stays.
    """
    adapter = {name: weight for name, weight in trained.named_parameters() if weight.requires_grad}
    model = load_model(source, "cpu")
    handle: Any = add_adapter(model, part, seed=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(adapter[name])
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            weight = cast(torch.Tensor, layer.get_base_layer().weight)
            delta = cast(Any, layer).get_delta_weight("default")
            weight.copy_(torch.where(delta == 0, weight, weight + delta))  # −0.0 + 0.0 would be 0.0
    handle.unload()
    return model
