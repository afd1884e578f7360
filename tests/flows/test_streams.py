"""What is printed where another writer left a line without its end, and where Prefect cannot deliver its logs."""

from __future__ import annotations

import asyncio
import contextvars
import io
import json
import os
import subprocess
import sys
import threading

import pytest
from prefect.logging.handlers import APILogWorker

from flows.streams import COMPLAINT, WholeLines, keep_lines_whole, print_line

NOTE = "did not reach Prefect's server"


class LostClient:
    """A client whose server takes no logs, by whatever way this Prefect sends them."""

    async def request(self, *_: object, **__: object) -> None:
        raise ConnectionError("Server error '500' for url\nFor more information: fault")

    create_logs = request


def lose_logs(batches: int = 1) -> None:
    """What Prefect's sender of logs does when the server takes none, in a thread of its own."""
    worker = APILogWorker("a test")
    worker._client = LostClient()  # type: ignore[assignment]

    def send() -> None:
        for _ in range(batches):
            asyncio.run(worker._handle_batch([]))

    thread = threading.Thread(target=contextvars.copy_context().run, args=[send])  # a copy: it has Prefect's settings
    thread.start()
    thread.join()


def wrapped(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to standard error, which is from here on as the command has it. (Not a fixture: pytest puts its own
    stream back before the test begins.)"""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", WholeLines(stream))
    return stream


def test_logs_that_are_lost_again_and_again_are_one_note(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches Prefect's own words (which this also compares with the ones we know), a note for each batch, and a note
    that does not end its line."""
    err = wrapped(monkeypatch)
    lose_logs(3)
    print("ours", file=sys.stderr)
    note, ours = err.getvalue().splitlines()
    assert note.startswith("note: logs of this run") and NOTE in note
    assert ours == "ours"


def test_traceback_that_debugging_requests_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches the one line after the heading that is dropped, whatever it says."""
    err = wrapped(monkeypatch)
    from prefect.settings import PREFECT_LOGGING_INTERNAL_LEVEL, temporary_settings

    with temporary_settings({PREFECT_LOGGING_INTERNAL_LEVEL: "DEBUG"}):
        lose_logs()
    assert "Traceback (most recent call last):\n" in err.getvalue()
    assert "ConnectionError" in err.getvalue()


def test_line_of_another_thread_is_never_glued_to_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches our line behind half a line of another thread, and the half line lost."""
    err = wrapped(monkeypatch)
    other = threading.Thread(target=lambda: sys.stderr.write("complete\nhalf"))
    other.start()
    other.join()
    print("ours", 1, file=sys.stderr)
    sys.stderr.end_lines()
    assert err.getvalue() == "complete\nours 1\nhalf\n"


def test_terminal_gets_a_bar_at_once() -> None:
    """Catches a progress bar, which has no newline, that is held back."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    lines = WholeLines(stream := Terminal())
    lines.write("\r 10 %")
    assert stream.getvalue() == "\r 10 %"


def test_json_is_a_line_of_its_own_where_both_streams_are_one_pipe() -> None:
    """Catches JSON that nobody can read, behind Prefect's sentence or behind half a line of our own thread, and what
    is lost when the process exits."""
    code = """
import sys
from flows.streams import keep_lines_whole, print_line
from tests.flows.test_streams import lose_logs
keep_lines_whole()
keep_lines_whole()
lose_logs()
sys.stderr.write("half a line")
sys.stdout.write("another")
print_line('{"ran": 7}')
sys.stderr.write("the end")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
        env={**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert [json.loads(line) for line in lines if line.startswith("{")] == [{"ran": 7}], lines
    assert {"another", "half a line"} < set(lines)
    assert [line for line in lines if NOTE in line] == [
        "note: logs of this run did not reach Prefect's server at http://127.0.0.1:9/api; the run and its store are "
        "unaffected."
    ]
    assert lines[-1] == "the end" and done.stdout.endswith("\n")
    assert COMPLAINT.strip() not in done.stdout


def test_streams_are_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a wrapper in a wrapper, one more for each flow of a process."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)  # a process without a console
    keep_lines_whole()
    first = sys.stdout
    keep_lines_whole()
    assert sys.stdout is first and isinstance(first, WholeLines) and sys.stderr is None
    print_line("x")
    assert first.getvalue() == "x\n"
