"""A terminal to run commands in: a pty whose screen pyte keeps."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyte
from rich.cells import cell_len

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """What a terminal of `columns` × `rows` shows of the bytes that it was sent."""

    def __init__(self, columns: int, rows: int = 40):
        self.columns = columns
        self.raw = b""
        self.frames: list[list[str]] = []
        self._screen = pyte.HistoryScreen(columns, rows, history=5000)
        self._stream = pyte.ByteStream(self._screen)
        self.master, self.slave = os.openpty()
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        """As a person who pulls at the window."""
        self.columns = columns
        self._screen.resize(rows, columns)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self) -> None:
        """Take what is there now. A frame is kept whenever the bottom of the screen has changed."""
        os.set_blocking(self.master, False)
        while True:
            try:
                data = os.read(self.master, 65536)
            except (BlockingIOError, OSError):
                return
            if not data:
                return
            self.raw += data
            self._stream.feed(data)
            shown = [line.rstrip() for line in self._screen.display if line.strip()]
            if not self.frames or self.frames[-1] != shown:
                self.frames.append(shown)

    @property
    def lines(self) -> list[str]:
        """All lines, those that have scrolled away too, without the empty ones."""
        above = ("".join(line[i].data for i in range(self._screen.columns)) for line in self._screen.history.top)
        return [line.rstrip() for line in (*above, *self._screen.display) if line.strip()]

    def widest(self) -> int:
        """Cells of the longest line that was sent, but for a path that is to be copied."""
        sent = ESCAPES.sub("", self.raw.decode("utf-8")).replace("\r", "\n").split("\n")
        return max(cell_len(line) for line in sent if not line.startswith("Report: "))

    def run(
        self, command: list[str], env: dict[str, str], cwd: Path, when: Callable[[list[str]], bool] = lambda _: False
    ) -> int:
        """The exit code of a command on this terminal; as soon as `when` is true of what is shown it gets a Ctrl-C."""
        process = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=self.slave, stdout=self.slave, stderr=self.slave,
            preexec_fn=take_terminal,
        )  # fmt: skip
        pressed, until = False, time.monotonic() + 240
        while process.poll() is None:
            assert time.monotonic() < until, self.lines
            self.read()
            if not pressed and self.frames and when(self.frames[-1]):
                os.write(self.master, b"\x03")
                pressed = True
            time.sleep(0.02)
        self.read()
        return process.returncode

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


def take_terminal() -> None:
    """In the child: Ctrl-C on its standard input is for it and no other process. A test run in a shell's background has
    SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextmanager
def screen(columns: int, rows: int = 40) -> Iterator[Screen]:
    """A Screen that is closed at the end."""
    one = Screen(columns, rows)
    try:
        yield one
    finally:
        one.close()
