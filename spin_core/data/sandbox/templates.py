"""Chat templates rendered in a child with limits on time, memory and length
(`spin_core/data/sandbox/template_child.py`).

Every text that our stages make of a conversation comes from there: one child per process, started at the first
rendering (a tenth of a second), used row by row (0.4 ms), ended with this process.
Promised: no template makes a stage hang, fills the memory, writes a file or sees the environment. Not promised: that
jinja's sandbox has no hole (then the child could read what this user may read); and lm-evaluation-harness renders
`harness.chat_template` by itself.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("template_child.py")
# The child ends itself by CPU time; this is for one that is stopped or starved.
WALL_SECONDS = 120.0
KEPT_TEXTS = 4  # a row's prompt is rendered several times in a row
# What the child's interpreter needs to find its libraries; no token, no proxy, no path of a cache.
KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")


class TemplateError(Exception):
    """What a template did wrong."""


class Renderer:
    """The child of this process. Safe with threads: vLLM's stages share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._template = ""
        self._texts: dict[str, str] = {}
        self._inherited: list[subprocess.Popen[bytes]] = []
        os.register_at_fork(after_in_child=self._forked)

    def render(self, template: str, variables: dict[str, Any]) -> str:
        """The text of `template` with `variables` (JSON values, `messages` among them). Raises TemplateError."""
        request = json.dumps(variables)
        with self._lock:
            if template != self._template or len(self._texts) > KEPT_TEXTS:
                self._texts.clear()
            if request not in self._texts:
                child = self._child()
                named = "null" if template == self._template else json.dumps(template)
                self._template = template
                try:
                    answer = self._ask(child, f'{{"template": {named}, "variables": {request}}}\n'.encode())
                except BaseException:  # its answer must not be taken for the next one's
                    self._end()
                    raise
                if "error" in answer:
                    self._template = ""  # the child may not have it: it could not be compiled
                    raise TemplateError(answer["error"])
                self._texts[request] = answer["text"]
            return self._texts[request]

    def _child(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._template = ""
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in KEPT if name in os.environ},
            )
        return self._process

    def _ask(self, child: subprocess.Popen[bytes], line: bytes) -> dict[str, str]:
        assert child.stdin and child.stdout
        late = threading.Event()
        # A stopped child neither reads what is longer than a pipe nor ends a line: its end frees who waits.
        timer = threading.Timer(WALL_SECONDS, _stop, (child, late))
        timer.start()
        try:
            child.stdin.write(line)
            child.stdin.flush()
            reply = child.stdout.readline()
        except BrokenPipeError:
            reply = b""
        finally:
            timer.cancel()
            timer.join()  # else it could still kill a child that has answered
        if late.is_set():
            raise TemplateError(f"it gave no text in {WALL_SECONDS:g} s")
        with suppress(ValueError):
            answer = json.loads(reply)
            if isinstance(answer, dict) and isinstance(answer.get("text", answer.get("error")), str):
                return answer
        self._end()
        if child.returncode == -signal.SIGPROF:
            from spin_core.data.sandbox.template_child import CPU_SECONDS

            raise TemplateError(f"it takes over {CPU_SECONDS:g} s of processor time")
        raise TemplateError(f"the process that renders it ended with code {child.returncode}")

    def _end(self) -> None:
        child, self._process = self._process, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with suppress(OSError):
                assert pipe
                pipe.close()

    def _forked(self) -> None:
        """In a fork: another thread of the parent may have held the lock, and its child's pipes are not for us."""
        self._lock = threading.Lock()
        child, self._process = self._process, None
        if child is None:
            return
        self._inherited.append(child)  # nothing of it may be flushed or waited for
        null = os.open(os.devnull, os.O_RDWR)
        for pipe in (child.stdin, child.stdout):
            assert pipe
            os.dup2(null, pipe.fileno(), inheritable=False)
        os.close(null)


def _stop(child: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    child.kill()


_renderer = Renderer()
render = _renderer.render
atexit.register(_renderer._end)
