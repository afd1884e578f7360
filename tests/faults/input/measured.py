"""How much memory reading a data set takes, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# VmHWM, not ru_maxrss, which a new process takes over from the one that started it.
CODE = """
import resource, sys
from pathlib import Path
from spin_core.errors import BadInput
from spin_core.data.readers import read
rows, message = 0, ""
try:
    for record in read(Path(sys.argv[1])):
        rows += 1
except BadInput as error:
    message = str(error)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(rows, int(peak) >> 10, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10, message)
"""


def read_measured(path: Path) -> tuple[int, int, int, str]:
    """Rows, the largest resident size in MiB of the process that read them and of its decoder, and BadInput's
    message."""
    command = [sys.executable, "-c", CODE, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    rows, here, child, message = ran.stdout.rstrip("\n").split(" ", 3)
    return int(rows), int(here), int(child), message
