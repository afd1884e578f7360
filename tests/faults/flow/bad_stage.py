"""A stage that misbehaves as an engine can."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

from spin_core.config.base import Section

NAME = "bad_stage"
VERSION = 1
GARBAGE = {
    "noise": b"\x1b[31m\x00 50%|#####     | it/s",
    "half a line": b'{"job": 1, "done": {"pairs"',
    "a number": b"5\n",
    "a list": b"[1, 2]\n",
    "nobody's": b'{"done": {}}\n',
    "an empty event": b'{"job": 1}\n',
    "an answer that is none": b'{"job": 1, "done": 5}\n',
    "an error without words": b'{"job": 1, "error": "StageFailed"}\n',
    "an error that is none": b'{"job": 1, "error": ["StageFailed"], "message": "x"}\n',
    "progress that is none": b'{"job": 1, "progress": "half"}\n',
}


class Config(Section):
    """What it does."""

    do: str
    lines: int = 0


def run(inputs, config, job):
    """Write something, and misbehave."""
    (job.out / "half.json").write_text("{")
    (job.scratch / "started").write_text(str(os.getpid()))
    for number in range(config.lines):
        print(f"line {number}", file=sys.stderr)
    sys.stderr.flush()
    BAD[config.do](job)
    return {"well": True}


def _grown(job) -> None:
    """As much memory as it is given, and more: the kernel refuses."""
    lines = Path("/proc/self/status").read_text().splitlines()
    used = int(next(line for line in lines if line.startswith("VmSize")).split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
    try:
        held = [bytearray(8 << 20) for _ in range(100)]
        raise AssertionError(f"{len(held)} pieces")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _garbage(name: str):
    def write(job) -> None:
        subprocess.Popen(["sleep", "600"])
        for fd in range(3, 64):
            try:
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.write(fd, GARBAGE[name])
            except OSError:
                continue
        if GARBAGE[name].endswith(b"\n"):
            time.sleep(600)  # else the answer comes, behind it on the same line

    return write


def _hang(job) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "600"])
    time.sleep(600)


def _closed(job) -> None:
    subprocess.Popen(["sleep", "600"])
    os.closerange(3, 64)
    time.sleep(600)


BAD = {
    "well": lambda job: None,
    "memory": _grown,
    "killed": lambda job: os.kill(os.getpid(), signal.SIGKILL),
    "aborted": lambda job: os.abort(),
    "exit code": lambda job: os._exit(3),
    "sys.exit": lambda job: sys.exit(3),
    "hang": _hang,
    "closed": _closed,
    **{f"garbage: {name}": _garbage(name) for name in GARBAGE},
}
