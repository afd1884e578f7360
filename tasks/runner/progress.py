"""Shows the progress of running steps: on a terminal in a view (flows/live.py), else by a line in the task run's log
now and then.

Commands that run no flow use it too, so nothing here imports Prefect (1.3 s), unless it is there already.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tasks.runner.meters import Meters

LOG_SECONDS = 15


class View(Protocol):
    """What a terminal shows; called from the threads of the steps."""

    def begin(self, title: str, where: str = "") -> None: ...
    def draw(self, title: str, event: dict) -> None: ...
    def end(self, title: str) -> None: ...
    def line(self, text: str) -> None: ...
    def close(self) -> None: ...


class Progress:
    """Called with a step's title and an event of `Job.progress` or `Job.note`, from the thread of the step's task.
    `view`: of a terminal, if there is one."""

    def __init__(self, view: View | None = None) -> None:
        self.view = view
        self._logged: dict[str, float] = {}
        self._noted: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    @cached_property
    def meters(self) -> Meters:
        """Progress in the UI of Prefect."""
        from tasks.runner.meters import Meters

        return Meters()

    def __call__(self, title: str, event: dict) -> None:
        if "done" in event and "prefect" in sys.modules:
            self.meters(title, event, where(title, event))
        if "note" in event:
            self._note(title, event["note"])
        elif "log" in event:
            _logger().info(event["log"])
            self._write(event["log"])
        elif "waiting" in event:
            waited = f"{event['holder']} computes the same step; waiting for it since {event['waiting']:.0f} s"
            self._log(title, f"{title}: {waited}")
            if self.view:
                self.view.draw(title, event)
        elif self.view:
            self.view.draw(title, event)
        else:
            self._log(title, where(title, event))

    def step(self, line: str, seconds: float | None) -> None:
        """One line for a finished step; where a Prefect worker runs the flow, its log has that already."""
        self._write(line + (f"  {seconds:.1f} s" if seconds is not None else ""))

    @contextmanager
    def at_work(self, title: str, where: str) -> Iterator[None]:
        """Inside, a view has the step among those at work; on the pool `where`, if it names one."""
        if self.view:
            self.view.begin(title, where)
        try:
            yield
        finally:
            if self.view:
                self.view.end(title)

    def _write(self, line: str) -> None:
        if "PREFECT__FLOW_RUN_ID" in os.environ:
            return
        if self.view:
            self.view.line(line)
            return
        with self._lock:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def _note(self, title: str, text: str) -> None:
        """At once, whatever else was written lately: to the task run's log, and to whoever watches the command; but
        what one shard of hundreds noted of all, once."""
        note = (title.partition("[")[0], text)
        with self._lock:
            if note in self._noted:
                return
            self._noted.add(note)
        _logger().warning(f"{title}: {text}")
        self._write(f"note: {title}: {text}")

    def _log(self, title: str, message: str) -> None:
        now = time.monotonic()
        if now - self._logged.get(title, now - LOG_SECONDS) < LOG_SECONDS:
            return
        self._logged[title] = now
        _logger().info(message)

    def close(self) -> None:
        if self.view:
            self.view.close()
        if "meters" in vars(self):
            self.meters.close()


def where(title: str, event: dict) -> str:
    """Where a step is, for a log. A total of 0 is one that nobody knows yet: then only what is done is said."""
    done, total = event["done"], event["total"]
    counts = f", {done:,} of {total:,} {event['unit']}" if total else f", {done:,} {event['unit']}" if done else ""
    figures = "".join(f", {name} {value:.4g}" for name, value in event["figures"].items())
    return f"{title}: {event['label']}{counts}{figures}"


def _logger() -> Any:
    if "prefect" not in sys.modules:
        return logging.getLogger(__name__)
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)
