"""Standard output and standard error of a process that runs a flow: whole lines only, and Prefect's complaints about
the delivery of its logs as one note.

Where the server does not take the log lines of a run, Prefect's sender of logs writes a heading and a sentence without
a newline to standard error, from a thread of its own and again for every batch: what is printed next, even the JSON of
`--json` where both streams are one pipe, would stand behind it on the same line.
"""

from __future__ import annotations

import atexit
import codecs
import io
import sys
import threading
from typing import Any, TextIO

from spin_core.errors import printable

COMPLAINT = "--- Error logging to API ---\n"
"""The first write of `prefect.logging.handlers.APILogWorker` (Prefect 3.8 and 3.9) when a batch of logs is lost. It is
made while the exception is handled; the second is the exception's message, which this recognizes by that exception.
With other words, a later Prefect's complaints would be printed as they are, on lines of their own."""

SHOWN = "spinloop-shown"
"""The name of `_shown` among Python's ways to treat what an encoding lacks."""


class WholeLines:
    """A text stream to which only whole lines go, each in one write. Text without a newline waits for the rest from
    the same thread. A terminal gets all text at once, because a progress bar has no newline."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self._begun: dict[int, str] = {}
        self._complaining: set[int] = set()
        self._noted = False
        self._lock = threading.RLock()  # a signal's handler may print too

    def write(self, text: str) -> int:
        """Write `text`, as a text stream does; returns its length."""
        with self._lock:
            if not self._is_complaint(text):
                if self.isatty():
                    self.stream.write(text)
                else:
                    self._write_lines(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of `lines`, as a text stream does."""
        for line in lines:
            self.write(line)

    def end_lines(self) -> None:
        """Write every line that is begun, of any thread, and end it."""
        with self._lock:
            for text in self._begun.values() if not self.stream.closed else ():
                self.stream.write(text + "\n")
            self._begun.clear()

    def _write_lines(self, text: str) -> None:
        thread = threading.get_ident()
        lines, newline, rest = (self._begun.pop(thread, "") + text).rpartition("\n")
        if rest:
            self._begun[thread] = rest
        if newline:
            self.stream.write(lines + newline)

    def _is_complaint(self, text: str) -> bool:
        """Whether `text` is Prefect's complaint that logs were not delivered; the first is replaced by a note."""
        thread = threading.get_ident()
        if text == COMPLAINT:
            self._complaining.add(thread)
            if not self._noted:
                self._noted = True
                self.stream.write(_note())
                self.stream.flush()
            return True
        if thread in self._complaining:
            self._complaining.remove(thread)
            return text == str(sys.exc_info()[1])
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def keep_lines_whole() -> None:
    """Make standard output and standard error of this process WholeLines, until it ends: Prefect sends its last logs
    while the process exits. What the terminal's encoding lacks is shown as `?`, a minus as `-` (on standard error, by
    Python, as `\\u03b8`). Does nothing where they are already."""
    codecs.register_error(SHOWN, _shown)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, WholeLines):
            if name == "stdout" and isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors=SHOWN)
            setattr(sys, name, lines := WholeLines(stream))
            atexit.register(lines.end_lines)


def print_escaped(text: str, file: TextIO | None = None) -> None:
    """Print `text`, for people, that has words in it which a store or somebody's file holds: of what a terminal would
    obey only line ends and tabs stay, the rest is escaped."""
    print(printable(text, "\n\t"), file=file or sys.stdout, flush=True)


def _shown(error: UnicodeError) -> tuple[str, int]:
    """In place of what an encoding lacks. A figure without its minus would be another one."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join("-" if c in "−–" else "?" for c in error.object[error.start : error.end]), error.end


def print_line(text: str) -> None:
    """Print `text` to standard output as a line of its own, whatever was written before and was not ended."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, WholeLines):
            stream.end_lines()
    print(text, flush=True)


def _note() -> str:
    from prefect.settings import PREFECT_API_URL

    where = f" at {url}" if (url := PREFECT_API_URL.value()) else ""
    return f"note: logs of this run did not reach Prefect's server{where}; the run and its store are unaffected.\n"
