"""What /proc says: the processes of a group, and how much main memory is free or held (Linux; elsewhere nothing is
known)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
GROUP_SECONDS = 5.0


def available() -> int | None:
    """Bytes that could be taken: of the machine, or of the container's own limit where that leaves less."""
    left = []
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        left += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        limit, used = ((CGROUP / name).read_text(encoding="utf-8") for name in ("memory.max", "memory.current"))
        left.append(max(0, int(limit) - int(used)))  # "max" is no number: no limit
    return min(left, default=None)


def members(group: int) -> Iterator[int]:
    """Processes of the group that are no zombies."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of, *_ = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if of == str(group) and state not in "ZX":
                yield int(stat.parent.name)


def started_by(parent: int) -> Iterator[int]:
    """Children of the process."""
    with suppress(OSError):
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            yield from map(int, file.read_text(encoding="utf-8").split())


def await_end(group: int) -> None:
    """Until nothing of the group is at work: an engine's own worker holds its GPU's memory for a moment after its
    SIGKILL, and the next engine asks what is free. Zombies have given theirs back (Linux; elsewhere no wait)."""
    until = time.monotonic() + GROUP_SECONDS
    while any(members(group)) and time.monotonic() < until:
        time.sleep(0.02)
