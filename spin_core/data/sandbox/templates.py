"""Chat templates rendered in a child with limits on time, memory and length
(`spin_core/data/sandbox/template_child.py`).

Every text that our stages make of a conversation comes from there: one child per process, started at the first
rendering (a tenth of a second), ended with this process.
Promised: no template makes a stage hang, fills the memory, writes a file or sees the environment. Not promised: that
jinja's sandbox has no hole (then the child could read what this user may read); and lm-evaluation-harness renders
`harness.chat_template` by itself.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("template_child.py")
# The child ends itself by processor time; this is for one that is stopped or starved.
WALL_SECONDS = 120.0
# What the child's interpreter needs to find its libraries; no token, no proxy, no path of a cache.
KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "SYSTEMROOT", "VIRTUAL_ENV")


class TemplateError(Exception):
    """What a template did wrong."""


class Renderer:
    """The child of this process. Safe with threads: vLLM's stages share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: socket.socket  # to the child, while there is one
        os.register_at_fork(after_in_child=self._forked)

    def render(self, template: str, variables: dict[str, Any]) -> str:
        """The text of `template` with `variables` (JSON values, `messages` among them). Raises TemplateError."""
        (made,) = self.render_all(template, variables, [{}])
        if isinstance(made, TemplateError):
            raise made
        return made

    def render_all(
        self, template: str, variables: dict[str, Any], each: Sequence[dict[str, Any]]
    ) -> list[str | TemplateError]:
        """As `render`, a text for each of `each`, whose variables are added. A million characters of conversation at
        once are well: child and parent hold them several times. Where the child ends, each is rendered alone."""
        with self._lock:
            try:
                return self._ask(json.dumps({"template": template, "variables": variables, "each": each}), len(each))
            except TemplateError as error:
                if len(each) == 1:
                    return [error]
        return [text for one in each for text in self.render_all(template, variables, [one])]

    def _start(self) -> None:
        self._pipe, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(CHILD)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={name: os.environ[name] for name in KEPT if name in os.environ},
            )

    def _ask(self, request: str, count: int) -> list[str | TemplateError]:
        if self._process is None:
            self._start()
        # A stopped child neither reads what is longer than the pipe nor ends a line.
        self._pipe.settimeout(WALL_SECONDS)
        try:
            self._pipe.sendall(request.encode() + b"\n")
            with self._pipe.makefile("rb") as lines:
                reply = lines.readline()
        except TimeoutError:
            self._end()
            raise TemplateError(f"it gave no text in {WALL_SECONDS:g} s") from None
        except OSError:
            reply = b""
        except BaseException:  # its answer must not be taken for the next one's
            self._end()
            raise
        with suppress(ValueError, TypeError, LookupError):
            texts = [_text(answer) for answer in json.loads(reply)]
            if len(texts) == count:
                return texts
        code = self._end()
        if code == -signal.SIGPROF:
            from spin_core.data.sandbox.template_child import CPU_SECONDS

            raise TemplateError(f"it takes over {CPU_SECONDS:g} s of processor time")
        raise TemplateError(f"the process that renders it ended with code {code}")

    def _end(self) -> int | None:
        child, self._process = self._process, None
        if child is None:
            return None
        child.kill()
        self._pipe.close()
        return child.wait()

    def _forked(self) -> None:
        """In a fork: another thread of the parent may have held the lock, and its child is not for us."""
        self._lock = threading.Lock()
        if self._process:
            self._process.returncode = 0  # nothing of it may be waited for
            self._process = None
            os.close(self._pipe.detach())


def _text(answer: dict[str, str]) -> str | TemplateError:
    return str(answer["text"]) if "text" in answer else TemplateError(answer["error"])


_renderer = Renderer()
render, render_all = _renderer.render, _renderer.render_all
atexit.register(_renderer._end)
