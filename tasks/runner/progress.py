"""Shows the progress of running steps: a bar on a terminal, else a line in the task run's log now and then.

Commands that run no flow use it too, so nothing here imports Prefect (1.3 s), unless it is there already.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from tasks.runner.meters import Meters

LOG_SECONDS = 15


class Progress:
    """Called with a step's title and an event of `Job.progress` or `Job.note`, from the thread of the step's task."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}
        self._logged: dict[str, float] = {}
        self._noted: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._terminal = sys.stderr.isatty()

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
        elif self._terminal:
            self._draw(f"{title} {event['label']}", event)
        else:
            self._log(title, where(title, event))

    def step(self, line: str, seconds: float | None) -> None:
        """One line for a finished step; where a Prefect worker runs the flow, its log has that already."""
        self._write(line + (f"  {seconds:.1f} s" if seconds is not None else ""))

    def _write(self, line: str) -> None:
        if "PREFECT__FLOW_RUN_ID" not in os.environ:
            with self._lock:
                tqdm.write(line, file=sys.stderr)

    def _draw(self, name: str, event: dict) -> None:
        with self._lock:
            bar = self._bars.get(name)
            if bar is None:
                bar = self._bars[name] = tqdm(
                    total=event["total"] or None, desc=name, unit=" " + event["unit"], leave=False, dynamic_ncols=True
                )
            bar.set_postfix({k: f"{v:.4g}" for k, v in event["figures"].items()}, refresh=False)
            bar.update(event["done"] - bar.n)
            if event.get("closed"):
                bar.close()
                del self._bars[name]

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
        with self._lock:
            for bar in self._bars.values():
                bar.close()
            self._bars.clear()
        if "meters" in vars(self):
            self.meters.close()


def where(title: str, event: dict) -> str:
    """Where a step is, for a log."""
    figures = "".join(f", {name} {value:.4g}" for name, value in event["figures"].items())
    return f"{title} {event['label']}: {event['done']:,} of {event['total']:,} {event['unit']}{figures}"


def _logger() -> Any:
    if "prefect" not in sys.modules:
        return logging.getLogger(__name__)
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)
