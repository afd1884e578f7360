"""Resumable training state on disk: safetensors and JSON, atomic, hashed (torch module).

`checkpoint-<step>/{model.safetensors, optimizer.safetensors, state.json}`; where the weights are
sharded, `model-00002-of-00008.safetensors` and so on, all in one folder. What it is *not*: not a model directory, not
an artifact of the store, never pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from spin_core.errors import StageFailed
from spin_core.runtime import process_group

KEPT = 2
KINDS = ("model", "optimizer")
Tensors = dict[str, torch.Tensor]

log = logging.getLogger(__name__)


def save(scratch: Path, weights: Tensors, optimizer: Tensors, history: list[dict], sharded: bool = False) -> Path:
    """Writes the state after `len(history)` optimiser steps and keeps the newest two. Where it is `sharded` every
    process calls it with its own tensors, else one process with all.

    Complete and durable before it has its name, so a kill at any moment leaves the older one. Raises StageFailed when
    the disk is full.
    """
    final = scratch / f"checkpoint-{len(history):08d}"
    leads = not sharded or process_group.rank() == 0
    try:
        made = _new_folder(scratch) if leads else None
        draft = Path(process_group.broadcast(str(made))) if sharded else Path(str(made))
        hashes = {}
        for name, tensors in zip(_files(sharded), (weights, optimizer), strict=True):
            save_file(tensors, draft / name)
            _fsync(draft / name)
            hashes[name] = _sha256(draft / name)
        for other in process_group.gather(hashes) if sharded else ():
            hashes |= other
        if leads:
            _finish(draft, final, hashes, history, process_group.world() if sharded else 1)
    except (OSError, SafetensorError) as error:
        raise StageFailed(
            f"no checkpoint could be written to {scratch} ({error}); free disk space or set checkpoint_every: 0"
        ) from error
    return final


def newest(scratch: Path, sharded: bool = False) -> Path | None:
    """The newest checkpoint whose files have the hashes that it says, in the eyes of every process (each looks at the
    files that it will read); a damaged one is logged and passed over.

    Raises StageFailed where the processes do not see the same folders, or a checkpoint is that of another number of
    processes.
    """
    there = sorted(scratch.glob("checkpoint-*"))
    sound = [path.name for path in there if _sound(path, sharded)]
    seen = process_group.gather([[path.name for path in there], sound])
    if any(names != seen[0][0] for names, _ in seen):
        newest_of_each = [names[-1:] for names, _ in seen]
        raise StageFailed(
            f"{scratch}: the processes see different checkpoints {newest_of_each}; put the store on a shared disk"
        )
    common = set(sound).intersection(*(names for _, names in seen))
    return scratch / max(common) if common else None


def history_of(path: Path) -> list[dict]:
    """The metrics of the steps that a checkpoint has behind it."""
    history: list[dict] = json.loads((path / "state.json").read_text())["history"]
    return history


def tensors_of(path: Path, sharded: bool = False) -> tuple[Tensors, Tensors]:
    """A checkpoint's weights and optimiser state, or this process's shard of them, on CPU."""
    weights, optimizer = (load_file(path / name) for name in _files(sharded))
    return weights, optimizer


def weights_of(model: torch.nn.Module) -> Tensors:
    """The weights that training changes: all of a model's, or those of an adapter. Tied ones are named once; as the
    model still ties them, restoring one restores both."""
    return {name: p.detach().contiguous() for name, p in _trained(model)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The optimiser's state as `<parameter number>.<name>` (RMSprop and AdamW hold nothing but tensors)."""
    return flat(optimizer.state_dict()["state"].items())


def flat(states: Iterable[tuple[int, dict[str, Any]]]) -> Tensors:
    """Numbered states as tensors by `<number>.<name>`."""
    return {f"{i}.{name}": value.contiguous() for i, values in states for name, value in values.items()}


def numbered(tensors: Tensors) -> dict[int, dict[str, Any]]:
    """The reverse of `flat`."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    return state


def restore(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[dict]:
    """Puts an unsharded checkpoint's weights and optimiser state in place; the metrics of the steps so far."""
    weights, state = tensors_of(path)
    with torch.no_grad():
        for name, parameter in _trained(model):
            parameter.copy_(weights[name])
    optimizer.load_state_dict({"state": numbered(state), "param_groups": optimizer.state_dict()["param_groups"]})
    return history_of(path)


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _files(sharded: bool) -> list[str]:
    mine = f"-{process_group.rank() + 1:05d}-of-{process_group.world():05d}" if sharded else ""
    return [f"{kind}{mine}.safetensors" for kind in KINDS]


def _new_folder(scratch: Path) -> Path:
    scratch.mkdir(parents=True, exist_ok=True)
    for left in scratch.glob("tmp-*"):
        shutil.rmtree(left)
    return Path(tempfile.mkdtemp(prefix="tmp-", dir=scratch))


def _finish(draft: Path, final: Path, hashes: dict[str, str], history: list[dict], parts: int) -> None:
    state = {"step": len(history), "parts": parts, "sha256": {**hashes, "history": _digest(history)}}
    (draft / "state.json").write_text(json.dumps(state | {"history": history}))
    _fsync(draft / "state.json")
    _fsync(draft)
    if final.exists():  # a damaged one of the same step, from before the resume
        shutil.rmtree(final)
    os.rename(draft, final)
    _fsync(final.parent)
    for old in sorted(final.parent.glob("checkpoint-*"))[:-KEPT]:
        shutil.rmtree(old)


def _sound(path: Path, sharded: bool) -> bool:
    expected = process_group.world() if sharded else 1
    try:
        state = json.loads((path / "state.json").read_text())
        made = state.get("parts", 1)
        if made == expected:
            hashes = {name: _sha256(path / name) for name in _files(sharded)} | {"history": _digest(state["history"])}
            if all(state["sha256"][name] == value for name, value in hashes.items()):
                return True
            log.warning("%s is damaged (a hash does not fit); going on from an older one", path)
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is damaged (%s); going on from an older one", path, error)
        return False
    raise StageFailed(
        f"{path}: it was written in {made} part(s), and {expected} would be read; set runtime.compute as it was then, "
        "or delete this folder to begin the training anew"
    )


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
