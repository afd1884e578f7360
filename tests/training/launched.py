"""Stages run by several real processes of one node, as a run starts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spin_core.config.runtime import Runtime
from spin_core.runtime.child import Child, launched


def spec(stage: str, config: Any, inputs: dict, digests: dict, place: Path, runtime: Runtime) -> dict:
    """A job as `step.compute` gives it to a child."""
    for name in ("out", "scratch"):
        (place / name).mkdir(parents=True, exist_ok=True)
    paths = {k: [str(p) for p in v] if isinstance(v, list) else str(v) for k, v in inputs.items()}
    return {
        "stage": stage, "module": f"spin_core.stages.{stage}", "config": config.model_dump(mode="json"),
        "inputs": paths, "digests": digests, "runtime": runtime.model_dump(), "out": str(place / "out"),
        "scratch": str(place / "scratch"),
    }  # fmt: skip


def runtime(processes: int = 2, sharding: str = "none", **more: Any) -> Runtime:
    if sharding == "fsdp2" and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("torch 2.6 has no FSDP2 on a CPU")
    settings = {"device": "cpu", "threads": 1, "micro_tokens": 100, "checkpoint_every": 2, **more}
    compute = {"processes": processes, "sharding": sharding, "offload": settings.pop("offload", "none")}
    return Runtime(compute=compute, **settings)  # type: ignore[arg-type]


def start(processes: int = 2) -> Child:
    """The processes; end them with `kill`."""
    return Child(launch=launched(runtime(processes).model_dump()))
