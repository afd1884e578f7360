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
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from spin_core.errors import StageFailed
from spin_core.runtime import process_group

KEPT = 2
Tensors = dict[str, Tensor]
Metrics = dict[str, float]
"""What one optimiser step is described by: loss, learning rate, rewards …"""

log = logging.getLogger(__name__)


def save(scratch: Path, weights: Tensors, state: dict[Tensor, Any], history: list[Metrics], sharded: bool) -> None:
    """Writes the state after `len(history)` optimiser steps and keeps the newest two: `weights` by name, and what the
    optimiser has for each (RMSprop and AdamW: nothing but tensors). Where it is `sharded` every process calls it with
    its own part, else one process with all.

    Complete and durable before it has its name, so a kill at any moment leaves the older one. Raises StageFailed when
    the disk is full.
    """
    final = scratch / f"checkpoint-{len(history):08d}"
    leads = not sharded or process_group.rank() == 0
    moments = {f"{i}.{name}": value for i, w in enumerate(weights.values()) for name, value in state[w].items()}
    try:
        made = ""
        if leads:
            scratch.mkdir(parents=True, exist_ok=True)
            for left in scratch.glob("tmp-*"):
                shutil.rmtree(left)
            made = tempfile.mkdtemp(prefix="tmp-", dir=scratch)
        draft = Path(process_group.broadcast(made) if sharded else made)
        hashes = {}
        for name, tensors in zip(_files(sharded), (weights, moments), strict=True):
            save_file({key: _here(value.detach()).contiguous() for key, value in tensors.items()}, draft / name)
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


def newest(scratch: Path, sharded: bool) -> Path | None:
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


@torch.no_grad()
def restore(scratch: Path, weights: Tensors, state: dict[Tensor, Any], sharded: bool) -> list[Metrics]:
    """Puts the newest sound checkpoint into `weights` and `state`; the metrics of its steps, [] where there is none."""
    path = newest(scratch, sharded)
    if path is None:
        return []
    saved, moments = (load_file(path / name) for name in _files(sharded))
    states: dict[int, Tensors] = defaultdict(dict)
    for key, value in moments.items():
        number, _, name = key.partition(".")
        states[int(number)][name] = value
    for i, (name, weight) in enumerate(weights.items()):
        _here(weight).copy_(saved[name])
        state[weight] = {what: value if what == "step" else _beside(weight, value) for what, value in states[i].items()}
    history: list[Metrics] = json.loads((path / "state.json").read_text(encoding="utf-8"))["history"]
    return history


def _here(value: Tensor) -> Tensor:
    """This process's part."""
    return value.to_local() if isinstance(value, DTensor) else value


def _beside(weight: Tensor, part: Tensor) -> Tensor:
    """An optimiser's moment as it lies beside its weight."""
    part = part.to(weight.device)
    if not isinstance(weight, DTensor):
        return part
    return DTensor.from_local(part, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride())


def _files(sharded: bool) -> list[str]:
    mine = f"-{process_group.rank() + 1:05d}-of-{process_group.world():05d}" if sharded else ""
    return [f"{kind}{mine}.safetensors" for kind in ("model", "optimizer")]


def _finish(draft: Path, final: Path, hashes: dict[str, str], history: list[Metrics], parts: int) -> None:
    state = {"step": len(history), "parts": parts, "sha256": {**hashes, "history": _digest(history)}}
    (draft / "state.json").write_text(json.dumps(state | {"history": history}), encoding="utf-8")
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
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        made = state.get("parts", 1)
        if made == expected:
            hashes = {name: _sha256(path / name) for name in _files(sharded)} | {"history": _digest(state["history"])}
            if any(state["sha256"][name] != value for name, value in hashes.items()):
                raise ValueError("a hash does not fit")
            return True
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


def _digest(history: list[Metrics]) -> str:
    return hashlib.sha256(json.dumps(history).encode()).hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
