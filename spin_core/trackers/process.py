"""Starts the sink of a tracker and hands it what comes, from threads: a tracker that is slow or hangs holds up nobody.
Not here: what is sent, and when (the run's part)."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from spin_core.runtime.launch import RANKS, UTF8, python_path

LAUNCHERS = ("PMI_", "OMPI_", "MV2_")  # of MPI: accelerate would take the sink for one of its processes


class SinkProcess:
    """The process of one tracker, started by the first item."""

    def __init__(self, head: dict[str, Any], log: Path, say: Callable[[dict[str, str]], None]) -> None:
        """`head`: whose board it is (sink.py). `log`: the file of what its libraries print. `say` is called from a
        thread with what the sink says."""
        self._head, self._log, self._say = head, log, say
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._gone = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._failed = False

    def send(self, item: dict[str, Any]) -> None:
        """Returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, daemon=True)
            self._thread.start()
        if not self._gone.is_set():
            self._waiting.put(item)

    def close(self, seconds: float) -> None:
        """Wait until all is sent, no longer than `seconds`; what is not is left out, and said."""
        if self._thread is None:
            return
        self._waiting.put(None)
        if not self._gone.wait(1.0 if self._failed else seconds) and self._process:
            self._process.kill()
            if not self._failed:
                self._warn(f"it did not take all within {seconds:g} s")
        self._gone.wait(1.0)

    def _serve(self) -> None:
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("w", encoding="utf-8") as log:
                self._process = self._start(log)
            listening = threading.Thread(target=self._listen, args=[self._process], daemon=True)
            listening.start()
            self._write(self._process)
            code = self._process.wait()
            listening.join()
            if code > 0 and not self._failed:
                self._warn(f"its process ended with exit code {code}; {self._log} has its last lines")
        except OSError as error:
            self._warn(f"its process cannot be started: {error}")
        finally:
            self._gone.set()

    def _start(self, log: Any) -> subprocess.Popen[str]:
        """In a session of its own: neither Ctrl-C nor the end of the run's process group cuts off what came."""
        others = {name for name in os.environ if name in RANKS or name.startswith(LAUNCHERS)}
        environment = {name: value for name, value in os.environ.items() if name not in others}
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "spin_core.trackers.sink"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env={**environment, **UTF8, "PYTHONPATH": python_path(), "ACCELERATE_USE_CPU": "true"},
        )

    def _write(self, process: subprocess.Popen[str]) -> None:
        item: dict[str, Any] | None = self._head
        assert process.stdin
        with suppress(OSError):  # it ended: it has said why
            while item is not None:
                process.stdin.write(json.dumps(item) + "\n")
                process.stdin.flush()
                item = self._waiting.get()
        with suppress(OSError):
            process.stdin.close()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            event = json.loads(line)
            self._failed = "warning" in event  # until it says again where its board is
            self._say(event)

    def _warn(self, why: str) -> None:
        self._failed = True
        self._say({"warning": why})
