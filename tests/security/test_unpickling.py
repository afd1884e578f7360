"""No process of a run unpickles (S2): an audit hook in all of them, through a small run from start to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.faults.fault import LEVEL, Fault

ROOT = Path(__file__).resolve().parents[2]
S2 = Fault("S2", "an audit hook in every process of a run: nothing is unpickled outside of torch's weights-only loader")
# Python imports a module of this name at its start, wherever it lies on the path.
HOOK = """
import os, sys
_log = os.environ.get("SPINLOOP_TEST_UNPICKLED")
def _note(line):
    with open(_log, "a") as file:
        file.write(line + "\\n")
def _hook(event, args):
    if event == "pickle.find_class":
        frame, places = sys._getframe(), []
        while frame and len(places) < 12:
            places.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
            frame = frame.f_back
        if not any("_weights_only_unpickler.py" in place for place in places):
            _note(f"{args[0]}.{args[1]} in {' < '.join(places)}")
if _log:
    sys.addaudithook(_hook)
    _note(f"began {sys.argv[0] if hasattr(sys, 'argv') else ''}")
"""


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 compiles in a pool of its own processes, which pickles"
)
def test_a_run_unpickles_nothing(server, tiny, tmp_path):
    """Catches a cache, a loader or a queue between processes that unpickles what lies on disk or comes over a wire."""
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    log = tmp_path / "log"

    def trial(command: str) -> None:
        env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "SPINLOOP_TEST_UNPICKLED": str(log)}
        ran = subprocess.run(
            [sys.executable, "-m", "flows.cli", command, str(tiny), "--store", str(tmp_path / "store"),
             "--set", "iterations=1"],
            cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=280,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-700:]
        lines = log.read_text().splitlines()
        assert sum(line.startswith("began") for line in lines) >= (2 if command == "run" else 1), "no hook in the child"
        bad = [line for line in lines if not line.startswith("began")]
        assert not bad, bad[:3]

    S2.each(["run"] if LEVEL == "pr" else ["run", "plan"], trial)
