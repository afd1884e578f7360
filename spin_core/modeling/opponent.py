"""The model that a process reads with: loaded once, kept for the next job of the same iteration, freed before training
(torch module)."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from transformers import PreTrainedModel

from spin_core.config.choices import Quantize
from spin_core.modeling.loading import load_model
from spin_core.modeling.sharded_loading import load as load_sharded

_opponent: dict[tuple[Path, str, torch.dtype, Quantize, bool], PreTrainedModel] = {}


def opponent(
    path: Path, device: torch.device | str, dtype: torch.dtype = torch.float32, quantize: Quantize = "none",
    sharded: bool = False,
) -> PreTrainedModel:  # fmt: skip
    """`load_model` for reading, remembered: steps of one iteration that run in one process load it once. With `sharded`
    each of several processes holds a part of it (FSDP2), and all must run the same passes.

    One model is kept; another key frees it first. Paths are store trees, whose content never changes.
    """
    key = (Path(path).resolve(), str(device), dtype, quantize, sharded)
    if key not in _opponent:
        release_opponent()
        if sharded:
            _opponent[key] = load_sharded(path, torch.device(device), dtype)
        else:
            _opponent[key] = load_model(path, device, dtype, quantize=quantize)
    return _opponent[key]


def release_opponent() -> None:
    """Frees the model that `opponent` remembers, so that training has the memory."""
    _opponent.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
