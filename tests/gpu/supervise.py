"""Runs a part in processes of its own, so that neither a kernel that hangs or faults nor a process that dies takes
more than one check with it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.gpu.proof import NOT_REACHED, Row

GRACE = 5.0
"""Seconds over a part's time before the check at work is ended: it looks at the time itself where it can."""
START = 120.0
"""Seconds until a process has imported all it needs."""


@dataclass
class _Process:
    """One process of a part, and what it has reported so far."""

    spec: dict
    checks: list[str] = field(default_factory=list)
    at_work: str = ""
    limit: float = 0.0

    def __post_init__(self) -> None:
        reads, writes = os.pipe()
        command = [sys.executable, "-m", "tests.gpu.part_process"]
        root = Path(__file__).resolve().parents[2]
        self.child = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, pass_fds=[writes], text=True, start_new_session=True
        )
        os.close(writes)
        self.messages: queue.Queue[dict | None] = queue.Queue()
        threading.Thread(target=self._read, args=[os.fdopen(reads)], daemon=True).start()
        assert self.child.stdin
        with suppress(BrokenPipeError):
            self.child.stdin.write(json.dumps({**self.spec, "rows": writes}) + "\n")
            self.child.stdin.flush()

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self.messages.put(json.loads(line))
        self.messages.put(None)

    def rows(self, until: float) -> Iterator[Row]:
        """Its rows until it ends or its time is over; then it is gone, and `at_work` the check that has no row."""
        ends = min(until, time.monotonic() + START)
        patience = 0.0
        try:
            while message := self.messages.get(timeout=max(0.0, ends - time.monotonic())):
                if "checks" in message:
                    self.checks, self.limit, ends = message["checks"], message["limit"], until
                elif "begins" in message:
                    self.at_work = message["begins"]
                    ends = min(until, time.monotonic() + self.limit) if self.limit else until
                else:
                    self.at_work = ""
                    yield Row(**message["row"])
            patience = GRACE  # it has closed its rows, so it ends by itself
        finally:
            self._end(patience)

    def _end(self, patience: float) -> None:
        """Nothing of its group stays."""
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(timeout=patience)
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


def run_part(module: str, settings: dict, seconds: float) -> Iterator[Row]:
    """The rows of all checks of a part, within `seconds` and little more. A check whose process died is a failed row;
    one that was ended by time is none, and says so."""
    part, ends = module.rpartition(".")[2], time.monotonic() + seconds
    done = 0
    while True:
        began, before = time.monotonic(), done
        process = _Process({**settings, "module": module, "seconds": max(0.0, ends - began), "first": done})
        try:
            for row in process.rows(ends + GRACE):
                done += 1
                yield row
            ok, code = False, process.child.returncode
            why = f"its process ended with {code if code >= 0 else signal.Signals(-code).name}"
        except queue.Empty:
            ok, why = None, f"ended after {time.monotonic() - began:.0f} s, as it took longer than its time"
        if process.at_work:
            done += 1
            yield Row(part, process.at_work, ok, round(time.monotonic() - began, 3), {}, why)
        if done == before and not (process.checks and done == len(process.checks)):
            yield Row(part, "(start)", False, round(time.monotonic() - began, 3), {}, f"no check began: {why}")
            return
        left = process.checks[done:]
        if not left:
            return
        if time.monotonic() >= ends:
            yield from (Row(part, name, None, 0.0, {}, NOT_REACHED) for name in left)
            return
