"""Runs jobs in child processes, and makes sure that none outlives its purpose.

Covered: time-out, a parent that ends in any way (the child sees its standard input end), a child that dies (its last
lines of output are in the error), the group of processes that a child started. Not covered: a child stopped with
SIGSTOP, when there is no time-out.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from spin_core import errors
from spin_core.errors import StageFailed

LAST_LINES = 20
ROOT = Path(__file__).resolve().parents[1]


class ChildDied(StageFailed):
    """The stage's process ended without an answer: killed, out of memory, crashed. Worth one more try."""


def python_path() -> str:
    """PYTHONPATH for a child started with -P, which keeps the current folder (a user's queue.py) out of its imports."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


class Child:
    """One process that serves one job at a time, in its own process group."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "spin_core.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": python_path()},
        )
        self._ended = False
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._drain = threading.Thread(target=self._keep_last, daemon=True)
        self._drain.start()

    def _keep_last(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.last.append(line.rstrip())

    def run(self, spec: dict, send: Callable[[dict], None], timeout: float = 0) -> dict:
        """The summary of the job. Raises what the stage raised; ChildDied when there is no answer; StageFailed after
        `timeout` seconds."""
        assert self.process.stdin and self.process.stdout
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self.kill()

        timer = threading.Timer(timeout, expire) if timeout else None
        if timer:
            timer.daemon = True
            timer.start()
        answered = False
        try:
            self.process.stdin.write(json.dumps(spec) + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                event = json.loads(line)
                answered = "progress" not in event
                if not answered:
                    send(event["progress"])
                elif "error" in event:
                    raise getattr(errors, event["error"], StageFailed)(event["message"])
                else:
                    summary: dict = event["done"]
                    return summary
        except (BrokenPipeError, json.JSONDecodeError):
            pass
        finally:
            if timer:
                timer.cancel()
            if not answered:  # whatever ended the wait, its answer must not be taken for the next job's
                self.kill()
        raise self._obituary(spec["module"].rpartition(".")[2], expired.is_set(), timeout)

    def _obituary(self, stage: str, expired: bool, timeout: float) -> StageFailed:
        if expired:
            return StageFailed(f"{stage}: ended after runtime.stage_timeout = {timeout:g} s.")
        code = self.process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
        tail = "".join(f"\n  | {line}" for line in self.last)
        return ChildDied(f"{stage}: its process ended without an answer, {how}{hint}.{tail}")

    def kill(self) -> None:
        """End the process and every process that it started. Once: a reaped process's number may be another's by
        now."""
        if self._ended:
            return
        self._ended = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._drain.join(timeout=1)


class Children:
    """At most `count` children, started when first needed and kept for the next job. A context manager: none is left
    at its end."""

    def __init__(self, count: int) -> None:
        self._slots: queue.Queue[Child | None] = queue.Queue()
        for _ in range(count):
            self._slots.put(None)
        self._all: list[Child] = []
        self._closed = False
        self._lock = threading.Lock()

    def run(self, spec: dict, send: Callable[[dict], None], timeout: float = 0) -> tuple[dict, float]:
        """Wait for a free child and run the job in it: its summary, and the seconds it took, the wait not counted."""
        child = self._slots.get()
        try:
            with self._lock:
                if self._closed:
                    raise StageFailed(f"{spec['module'].rpartition('.')[2]}: the run is being ended.")
                if child is None or child.process.poll() is not None:
                    child = Child()
                    self._all.append(child)
            began = time.monotonic()
            return child.run(spec, send, timeout), time.monotonic() - began
        finally:
            self._slots.put(child)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
        for child in self._all:
            child.kill()
