"""The process of one part: `python -m tests.gpu.part_process`, started by `supervise`.

It writes a JSON line when a check begins and one for each row to the file descriptor that it is given, as libraries
print to standard output what they like. It ends where the parent's end of its standard input closes.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(spec["rows"], "w") as rows:

        def send(message: dict) -> None:
            rows.write(json.dumps(message) + "\n")
            rows.flush()

        _run(spec, send)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _run(spec: dict, send: Callable[[dict], None]) -> None:
    import torch

    from tests.gpu.proof import Proof, is_broken, run_checks

    kit = Path(spec["kit"]) if spec["kit"] else None
    deadline = time.monotonic() + spec["seconds"]
    proof = Proof(torch.device(spec["device"]), spec["tiny"], Path(spec["out"]), deadline, kit)
    part = importlib.import_module(spec["module"])
    send({"checks": [check.__name__ for check in part.CHECKS], "limit": getattr(part, "LIMIT", 0)})
    try:
        for row in run_checks(part, proof, spec["first"], lambda name: send({"begins": name})):
            send({"row": row.as_json()})
            if is_broken(row):
                break
    finally:
        shutil.rmtree(proof.work, ignore_errors=True)


if __name__ == "__main__":
    main()
