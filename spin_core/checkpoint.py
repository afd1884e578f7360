"""Resumable training state on disk: safetensors and JSON, atomic, hashed (torch module).

`checkpoint-<step>/{model.safetensors, optimizer.safetensors, state.json}`. What it is *not*: not a model directory,
not an artifact of the store, never pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from spin_core.errors import StageFailed

KEPT = 2
FILES = ("model.safetensors", "optimizer.safetensors")

log = logging.getLogger(__name__)


def save_checkpoint(
    scratch: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, history: list[dict]
) -> Path:
    """Writes the state after `len(history)` optimiser steps and keeps the newest two.

    Complete and durable before it has its name, so a kill at any moment leaves the older one. Raises StageFailed when
    the disk is full.
    """
    final = scratch / f"checkpoint-{len(history):08d}"
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        for left in scratch.glob("tmp-*"):
            shutil.rmtree(left)
        part = Path(tempfile.mkdtemp(prefix="tmp-", dir=scratch))
        # named_parameters names tied weights once; as the model still ties them, restoring one restores both.
        save_file({name: p.detach().contiguous() for name, p in _trained(model)}, part / FILES[0])
        save_file(_optimizer_tensors(optimizer), part / FILES[1])
        hashes = {name: _sha256(part / name) for name in FILES}
        state = {"step": len(history), "sha256": {**hashes, "history": _digest(history)}, "history": history}
        (part / "state.json").write_text(json.dumps(state))
        for path in [*(part / name for name in FILES), part / "state.json", part]:
            _fsync(path)
        if final.exists():  # a damaged one of the same step, from before the resume
            shutil.rmtree(final)
        os.rename(part, final)
        _fsync(scratch)
        for old in sorted(scratch.glob("checkpoint-*"))[:-KEPT]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        raise StageFailed(
            f"no checkpoint could be written to {scratch} ({error}); free disk space or set checkpoint_every: 0"
        ) from error
    return final


def latest_checkpoint(scratch: Path) -> Path | None:
    """The newest checkpoint whose files have the hashes that it says; a damaged one is logged and passed over."""
    for path in sorted(scratch.glob("checkpoint-*"), reverse=True):
        try:
            state = json.loads((path / "state.json").read_text())
            found = {**{name: _sha256(path / name) for name in FILES}, "history": _digest(state["history"])}
            if found == state["sha256"]:
                return path
            log.warning("%s is damaged (a hash does not fit); going on from an older one", path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s is damaged (%s); going on from an older one", path, error)
    return None


def restore(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[dict]:
    """Puts a checkpoint's weights and optimiser state in place and returns the metrics of the steps so far."""
    weights = load_file(path / FILES[0])
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter.copy_(weights[name])
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in load_file(path / FILES[1]).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return json.loads((path / "state.json").read_text())["history"]


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """The weights that training changes: all of a model's, or those of an adapter."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as `<parameter number>.<name>` (RMSprop and AdamW hold nothing but tensors)."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value.contiguous() for i, values in state.items() for name, value in values.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(history: list[dict]) -> str:
    return hashlib.sha256(json.dumps(history).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
