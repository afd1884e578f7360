"""Artifacts of steps, for who watches the UI and not a terminal: the progress of one that takes long, every 5 s, and a
page of one that fails. Sent by a thread of their own: a server that is slow or gone holds up no step and fails none."""

from __future__ import annotations

import contextvars
import queue
import re
import threading
import time
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from spin_core.errors import one_line
from spin_core.report.ui_pages import escape

EVERY = 5.0  # seconds: a shorter step has no artifact, and one is changed no more often
FLUSH = 2.0  # seconds that the end of a run waits for what is on its way


@dataclass
class Meter:
    """The artifact of one step: what it is to show, and when it may be sent next."""

    made: ArtifactCreate
    due: float
    shown = waiting = False
    id: UUID | None = None


class Meters:
    """Called with a step's title, an event of `Job.progress` and what it says, from the thread of the step's task."""

    def __init__(self) -> None:
        self.profile = ""
        self._meters: dict[tuple[str, int], Meter] = {}
        self._queue: queue.SimpleQueue[Meter | threading.Event] | None = None
        self._lock = threading.Lock()

    def __call__(self, title: str, event: dict, text: str) -> None:
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
            meter.made.data, meter.made.description = share, escape(text, 300)
            if now >= meter.due or (closed and meter.shown):
                meter.due, meter.shown = now + EVERY, True
                if not meter.waiting:
                    self._put(meter)
                meter.waiting = True

    def page(self, kind: str, text: str, description: str) -> None:
        """A Markdown page of the step whose task calls, under the key `<profile>-<kind>`."""
        task = TaskRunContext.get()
        if task is None:
            return
        key = re.sub("[^a-z0-9]+", "-", f"{self.profile} {kind}".strip())
        made = ArtifactCreate(type="markdown", key=key, task_run_id=task.task_run.id)
        made.flow_run_id, made.data, made.description = task.task_run.flow_run_id, text, description
        with self._lock:
            self._put(Meter(made, 0.0))

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
                        get_run_logger().warning(
                            "The UI does not show all progress, or what failed (%s).", one_line(error)
                        )
                    failed = True
        meter.set()
