"""How a stage's process becomes several: one `accelerate launch` on each node, each of its processes a worker.

Runs in the parent, so it loads no torch. Not here: the meeting of nodes (`rendezvous`), what the processes do
(`process_group`).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from spin_core.config.runtime import Compute, Runtime
from spin_core.config.stage_table import SHARED
from spin_core.runtime import gpus

ROOT = Path(__file__).resolve().parents[2]
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ACCELERATE_USE_CPU")
"""Of the launcher that the parent itself was started by, if there was one: a child is not of its processes."""
UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:replace"}
"""Of every child: libraries open files, and print, without saying in which encoding; the user's may be another one."""
DEFAULTS = Path(__file__).with_name("accelerate.yaml")


def wanted(stage: str, runtime: Runtime) -> bool:
    """Whether the stage is shared by several processes. One process that shards with offload needs no launcher."""
    return stage in SHARED and runtime.compute.world > 1


def command(python: str, compute: Compute, node: int = 0, leader: str = "127.0.0.1", port: int = 0) -> list[str]:
    """The command of one node. `port` is where torch's processes meet: a free one of the leader, the same on all
    nodes."""
    # A config file of ours: else the defaults that a user once saved for himself would be mixed in.
    return [
        python, "-m", "accelerate.commands.launch", "--config_file", str(DEFAULTS), "--multi_gpu",
        "--num_processes", str(compute.world), "--num_machines", str(compute.nodes), "--machine_rank", str(node),
        "--main_process_ip", leader, "--main_process_port", str(port or free_port()), "--same_network",
        "--rdzv_backend", "static", "--mixed_precision", "no", "--dynamo_backend", "no",
        "-m", "spin_core.runtime.worker",
    ]  # fmt: skip


def environment(runtime: Runtime) -> dict[str, str]:
    """What the processes need in their environment beside the parent's."""
    cpu = runtime.device == "cpu" or not gpus.visible()
    threads = (
        {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // runtime.compute.processes))}
        if cpu or runtime.compute.offload != "none"
        else {}
    )
    given = {} if "OMP_NUM_THREADS" in os.environ else threads
    # What is imported must be ours: without it the current folder comes first (a user's queue.py).
    return {"PYTHONSAFEPATH": "1", **UTF8, **({"ACCELERATE_USE_CPU": "true"} if cpu else {}), **given}


def free_port() -> int:
    """A TCP port of this machine that nobody had a moment ago."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port: int = listener.getsockname()[1]
        return port


def python_path() -> str:
    """PYTHONPATH for a child started with -P, which keeps the current folder (a user's queue.py) out of its imports."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
