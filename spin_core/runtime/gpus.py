"""Which GPUs each stage process sees. Calls the driver's own tool, not torch, which the parent never loads."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from itertools import takewhile

from spin_core.config.runtime import Pools, Runtime
from spin_core.errors import BadInput


def visible() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them; none where there is no driver."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return list(takewhile(lambda gpu: gpu not in ("", "-1"), named.split(",")))  # as CUDA reads it
    return query("index")


def query(fields: str) -> list[str]:
    """The driver's `fields` of each GPU, a line each with commas between; none where there is no driver."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=30)
        return done.stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def groups(runtime: Runtime, gpus: list[str]) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each of `runtime.workers` processes: `tensor_parallel` GPUs each, none shared while there
    are enough. Empty where nothing is to be divided: one process, no GPU, or a device that the user chose.

    Raises BadInput where one process's GPUs are not there. With fewer GPUs than workers some are shared, which suits
    small models only.
    """
    each, together = runtime.tensor_parallel, runtime.compute.processes
    if gpus and runtime.device != "cpu" and together > len(gpus):
        raise BadInput(
            f"runtime.compute.processes is {together}, and {len(gpus)} GPUs are visible; lower it, or show more of "
            "them in CUDA_VISIBLE_DEVICES"
        )
    if runtime.compute.world > 1 and runtime.device.startswith("cuda:"):
        raise BadInput(
            f"runtime.device: {runtime.device} is one GPU, and runtime.compute asks for {runtime.compute.world} "
            "processes; set device: auto"
        )
    if not gpus or runtime.device not in ("auto", "cuda") or runtime.workers == each == 1:
        return []
    if each > len(gpus):
        raise BadInput(
            f"runtime.tensor_parallel is {each}, and {len(gpus)} GPUs are visible; lower it, or show more of them in "
            "CUDA_VISIBLE_DEVICES"
        )
    places = len(gpus) // each
    return [",".join(gpus[(i % places) * each : (i % places + 1) * each]) for i in range(runtime.workers)]


def check_unshared(runtime: Runtime, count: int) -> None:
    """Raise BadInput where two vLLM engines would share one of `count` GPUs: each takes `runtime.gpu_memory` of it."""
    wanted, chosen = runtime.workers * runtime.tensor_parallel, runtime.device.startswith("cuda:")
    if (runtime.device in ("auto", "cuda") and 0 < count < wanted) or (chosen and wanted > 1):
        raise BadInput(
            f"generate.engine vllm: runtime.workers {runtime.workers} × runtime.tensor_parallel "
            f"{runtime.tensor_parallel} needs {wanted} GPUs, and {1 if chosen else count} can be used; lower either"
        )


def held(stage: str, runtime: Runtime, share: int = 1, together: bool = False) -> dict:
    """What a step holds while it is computed, for its record: `gpus` (0 on CPU), their `name`, and by how many steps at
    once they are `shared` (`share` jobs in one engine, times processes that there are too few GPUs for). `together`: it
    is done by the processes of `runtime.compute`, on all nodes.

    A `share` above 1 is that of a vLLM step. One of harness has its engine for itself: the process is one model's and
    one task list's."""
    if stage not in Pools.model_fields or runtime.device == "cpu" or not (there := _visible()):
        return {"gpus": 0}
    if together:
        return {"gpus": runtime.compute.world, "name": _name(), "shared": 1}
    each = min(runtime.tensor_parallel if share > 1 else 1, len(there))
    if stage == "harness":
        share = 1
    chosen = runtime.device.startswith("cuda:")
    crowd = runtime.workers if chosen else -(-runtime.workers // max(1, len(there) // each))
    return {"gpus": each, "name": _name(), "shared": share * max(1, crowd)}


@cache
def _visible() -> tuple[str, ...]:
    return tuple(visible())


@cache
def _name() -> str:
    """The first GPU's model, as the driver calls it."""
    return (query("name") or [""])[0].strip()[:80]
