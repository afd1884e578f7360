"""What an estimate is for: the GPUs that the driver shows, those that the user names, or an assumed one.

Is not: which process sees which GPU (`spin_core/runtime/gpus.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from spin_core.config import yaml_reader
from spin_core.errors import BadInput
from spin_core.runtime import gpus

KNOWN = Path(__file__).with_name("gpus.yaml")
ASSUMED = "h100-80gb"


@dataclass(frozen=True)
class Gpu:
    """One GPU. Speeds of 0 are unknown: then no time is estimated. `bandwidth`, `link`: GB/s."""

    name: str
    gib: float
    bfloat16: float = 0.0
    float32: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0

    def tflops(self, precision: str) -> float:
        """Dense TFLOP/s of matrix products."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


@dataclass(frozen=True)
class Hardware:
    """`count` GPUs a node (0: as many as the profile asks for). No GPU: a CPU, without an estimate of time. `certain`:
    seen or named, so that what does not fit is refused."""

    gpu: Gpu | None
    count: int
    certain: bool
    description: str


CPU = Hardware(None, 0, False, "a CPU (runtime.device: cpu), for which no time is estimated")
"""Of a run that the profile puts on the CPU."""


def known() -> dict[str, Gpu]:
    """The listed GPUs by name."""
    return {name: Gpu(name, *line[:5]) for name, line in yaml_reader.read_file(KNOWN).items()}


def choose(named: str, count: int, small: bool) -> Hardware:
    """`named` by the user with `count`; else what the driver shows; else, for a `small` model this machine's CPU, and
    for others an assumption. Raises BadInput for an unknown name."""
    if named:
        listed = known()
        if named not in listed:
            raise BadInput(f"--gpu {named}: not a known GPU; take one of {', '.join(listed)}.")
        return Hardware(listed[named], count, True, f"{_many(count, named)} (--gpu)")
    if count:
        raise BadInput("--gpus: says how many of --gpu there are on a node; name that too, such as --gpu h100-80gb.")
    visible = gpus.visible()
    if visible and (gpu := of_driver(next(iter(gpus.query("name,memory.total")), ""))):
        return Hardware(gpu, len(visible), True, f"{_many(len(visible), gpu.name)}, as the driver shows")
    if small:
        return Hardware(None, 0, False, "this machine's CPU, for which no time is estimated (--gpu NAME for a GPU)")
    return Hardware(known()[ASSUMED], 0, False, f"{ASSUMED}, assumed as no GPU is seen here (--gpu NAME --gpus N)")


def _many(count: int, name: str) -> str:
    return f"{count} × {name}" if count else name


def of_driver(line: str) -> Gpu | None:
    """What nvidia-smi's line `name, MiB` says, with the speeds of a GPU that is listed; None where it is none."""
    name, _, mib = line.rpartition(",")
    if not re.fullmatch(r"\s*\d+\s*", mib):
        return None
    parts = re.split(r"[^A-Za-z0-9]+", name)
    gib = int(mib) / 1024
    for listed, (known_gib, *speeds, needed) in yaml_reader.read_file(KNOWN).items():
        if all(part in parts for part in needed) and abs(gib - known_gib) < 0.15 * known_gib:
            return Gpu(listed, gib, *speeds)
    return Gpu(name.strip()[:60], gib)
