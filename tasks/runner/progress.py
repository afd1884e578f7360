"""Shows the progress of running steps: a bar on a terminal, else a line in the task run's log now and then; and of
those that take long an artifact in the UI."""

from __future__ import annotations

import contextvars
import logging
import os
import queue
import re
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import TaskRunContext
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from tqdm import tqdm

from spin_core.errors import one_line
from spin_core.report.ui_pages import escape

LOG_SECONDS = 15
EVERY = 5.0  # seconds: a shorter step has no artifact, and one is changed no more often
FLUSH = 2.0  # seconds that the end of a run waits for what is on its way


class Progress:
    """Called with a step's title and an event of `Job.progress` or `Job.note`, from the thread of the step's task."""

    def __init__(self) -> None:
        self._bars: dict[str, tqdm] = {}
        self._logged: dict[str, float] = {}
        self._noted: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._terminal = sys.stderr.isatty()
        self.meters = Meters()

    def __call__(self, title: str, event: dict) -> None:
        if "done" in event:
            self.meters(title, event)
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
            self._log(title, _where(title, event))

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
        self.meters.close()


def _logger() -> Any:
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)


@dataclass
class Meter:
    """The artifact of one step: what it is to show, and when it may be sent next."""

    made: ArtifactCreate
    due: float
    shown = waiting = False
    id: UUID | None = None


class Meters:
    """Progress artifacts of steps that take long, for who watches the UI and not a terminal. Sent by a thread of their
    own, every 5 s for a step: a server that is slow or gone holds up no step and fails none.

    Called with a step's title and an event of `Job.progress`, from the thread of the step's task."""

    def __init__(self) -> None:
        self.profile = ""
        self._meters: dict[tuple[str, int], Meter] = {}
        self._queue: queue.SimpleQueue[Meter | threading.Event] | None = None
        self._lock = threading.Lock()

    def __call__(self, title: str, event: dict) -> None:
        task = TaskRunContext.get()
        if task is None or not event["total"]:
            return
        run, now, closed = task.task_run, time.monotonic(), event.get("closed", False)
        share = 100.0 if closed else round(min(100.0, 100 * event["done"] / event["total"]), 1)
        with self._lock:
            if (meter := self._meters.get((title, run.run_count))) is None:  # a step that is tried again starts anew
                key = re.sub("[^a-z0-9]+", "-", f"{self.profile} progress {title.partition('[')[0]}".strip())
                made = ArtifactCreate(type="progress", key=key, task_run_id=run.id, flow_run_id=run.flow_run_id)
                meter = self._meters[title, run.run_count] = Meter(made, now + EVERY)
            meter.made.data, meter.made.description = share, escape(_where(title, event), 300)
            if now >= meter.due or (closed and meter.shown):
                meter.due, meter.shown = now + EVERY, True
                if not meter.waiting:
                    self._put(meter)
                meter.waiting = True

    def close(self) -> None:
        """Wait a moment for what is on its way."""
        with self._lock:
            ending, self._queue = self._queue, None
            self._meters.clear()
        if ending:
            sent = threading.Event()
            ending.put(sent)
            sent.wait(FLUSH)

    def _put(self, meter: Meter) -> None:
        if self._queue is None:
            self._queue, here = queue.SimpleQueue(), contextvars.copy_context()  # Prefect's settings, the run's logger
            threading.Thread(target=here.run, args=[self._send_all, self._queue], daemon=True).start()
        self._queue.put(meter)

    def _send_all(self, waiting: queue.SimpleQueue) -> None:
        failed = False
        # With settings of its own it is none of the engine's clients, which end with the task.
        with get_client(sync_client=True, httpx_settings={"timeout": 30.0}) as client:
            while isinstance(meter := waiting.get(), Meter):
                with self._lock:
                    meter.waiting, now = False, meter.made.model_copy()
                try:
                    if meter.id is None:
                        meter.id = client.create_artifact(now).id
                    else:
                        client.update_artifact(meter.id, ArtifactUpdate(data=now.data, description=now.description))
                except Exception as error:  # the step goes on without, and the next one may come through
                    if not failed:
                        get_run_logger().warning("The UI does not show all progress (%s).", one_line(error))
                    failed = True
        meter.set()


def _where(title: str, event: dict) -> str:
    """Where a step is, for a log."""
    figures = "".join(f", {name} {value:.4g}" for name, value in event["figures"].items())
    return f"{title} {event['label']}: {event['done']:,} of {event['total']:,} {event['unit']}{figures}"
