"""How a stage's process becomes several: on each node one launcher (`processes`), each of its processes a worker.

They find each other as under torchrun, by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Runs in the parent, so it
loads no torch. Not here: the meeting of nodes (`meeting`), what the processes do (`process_group`).
"""

from __future__ import annotations

import atexit
import os
import random
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from pathlib import Path

from spin_core.config.runtime import Compute, Runtime
from spin_core.config.stage_table import SHARED
from spin_core.errors import StageFailed
from spin_core.runtime import gpus

ROOT = Path(__file__).resolve().parents[2]
RANKS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
    "ACCELERATE_USE_CPU",
)  # fmt: skip
"""Of the launcher that the parent itself was started by, if there was one: a child is not of its processes."""
UTF8 = {"PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8:replace"}
"""Of every child: libraries open files, and print, without saying in which encoding; the user's may be another one."""
LOOPBACK = "127.0.0.1"
PORTS = range(20000, 32768)
"""Below those that Linux gives to whoever asks for any (32768 to 60999)."""
TRIES = 100


@dataclass(frozen=True)
class Launch:
    """Several processes in place of one: the launcher's command, and what it needs in its environment."""

    command: list[str]
    environment: dict[str, str]
    call: Callable[[Callable[[str], None], Callable[[str], None]], None] | None = None
    """Calls the other nodes, where there are some: what to show while it waits, and when one is lost."""
    release: Callable[[], None] = lambda: None
    """Lets them know that it is over."""


def wanted(stage: str, runtime: Runtime) -> bool:
    """Whether the stage is shared by several processes. One process that shards with offload needs no launcher."""
    return stage in SHARED and runtime.compute.world > 1


def command(python: str, compute: Compute) -> list[str]:
    """The command that starts one node's processes, and ends with the first of them."""
    return [python, "-m", "spin_core.runtime.processes", str(compute.processes)]


def environment(runtime: Runtime, port: int, node: int = 0, address: str = LOOPBACK) -> dict[str, str]:
    """What one node's processes need in their environment beside the parent's. They meet at `port` of node 0's
    `address`, and listen nowhere but on the network interface that leads there."""
    compute = runtime.compute
    meet = {
        "WORLD_SIZE": str(compute.world), "LOCAL_WORLD_SIZE": str(compute.processes), "GROUP_RANK": str(node),
        "MASTER_ADDR": address, "MASTER_PORT": str(port),
    }  # fmt: skip
    cpu = runtime.device == "cpu" or not gpus.visible()
    threads = (
        {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // compute.processes))}
        if cpu or compute.offload != "none"
        else {"OMP_NUM_THREADS": "1"}
    )
    # NCCL between nodes chooses for itself: it knows InfiniBand.
    sockets = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")[: 2 if compute.nodes == 1 else 1]
    chosen = {**threads, **dict.fromkeys(sockets, interface_to(address))}
    own = {name: value for name, value in chosen.items() if value and name not in os.environ}
    # What is imported must be ours: without it the current folder comes first (a user's queue.py).
    return {"PYTHONSAFEPATH": "1", **UTF8, **meet, **({"ACCELERATE_USE_CPU": "true"} if cpu else {}), **own}


def interface_to(address: str) -> str:
    """The network interface of this machine that leads to `address`; empty where none is known."""
    import psutil

    try:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return ""
    there = psutil.net_if_addrs().items()
    return next((name for name, ways in there if own in (way.address.partition("%")[0] for way in ways)), "")


def free_port(address: str = LOOPBACK) -> int:
    """A TCP port of this machine's `address` that nobody has now. Raises StageFailed where there is none."""
    for port in random.sample(PORTS, TRIES):
        with socket.socket(family_of(address)) as listener:
            try:
                listener.bind((address, port))
            except OSError:
                continue
            return port
    raise StageFailed(
        f"{address}: none of {TRIES} ports from {PORTS[0]} to {PORTS[-1]} can be listened on; see what has them "
        "(`ss -ltn`)."
    )


def family_of(address: str) -> socket.AddressFamily:
    """IPv4 or IPv6."""
    return socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET


def python_path(python: str = sys.executable) -> str:
    """PYTHONPATH for a child started with -P, which keeps the current folder (a user's queue.py) out of its imports."""
    own = ROOT if python == sys.executable or (ROOT / "pyproject.toml").is_file() else _alone()
    return os.pathsep.join(filter(None, [str(own), os.environ.get("PYTHONPATH")]))


@cache
def _alone() -> Path:
    """A folder with nothing but a link to spin_core, there while this process is. A wheel lies among the packages of
    this interpreter, and with their folder on its path another interpreter (vLLM's) would import those."""
    folder = tempfile.mkdtemp(prefix="spinloop-path-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "spin_core").symlink_to(ROOT / "spin_core")
    return Path(folder)
