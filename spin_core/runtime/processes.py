"""Starts one node's processes of a stage: `python -m spin_core.runtime.processes COUNT`, in torchrun's place.

They are all equal workers (`worker`), each the leader of a group of its own. The first that ends ends all; when this
launcher ends in any way, they see it and end. Not torchrun, nor `accelerate launch`, which starts it: its agent listens
on every network of the machine, and none of what it adds (restarts, a changing number of nodes) is used here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress


def main() -> None:
    """Serve until the first process ends, and exit with its code (1 for none)."""
    count = int(sys.argv[1])
    first = int(os.environ["GROUP_RANK"]) * count
    command = [sys.executable, "-P", "-m", "spin_core.runtime.worker"]
    numbers = [{"RANK": str(first + local), "LOCAL_RANK": str(local)} for local in range(count)]
    workers = [
        # The jobs come on standard input, to the first; it also sees by it that the parent is gone.
        subprocess.Popen(
            command,
            env={**os.environ, **number},
            stdin=None if number["LOCAL_RANK"] == "0" else subprocess.DEVNULL,
            start_new_session=True,
        )
        for number in numbers
    ]
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm's, to every process of a job: the workers end by themselves
    _, status = os.wait()
    for worker in workers:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
    sys.exit(max(1, os.waitstatus_to_exitcode(status)))


if __name__ == "__main__":
    main()
