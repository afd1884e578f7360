"""The trackers of a run (`runtime.trackers`): fed while a training is at work, and with each step that is there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from spin_core.errors import one_line
from spin_core.runtime.step import KeyedStep, Step
from spin_core.store.store import Record, Store
from spin_core.trackers.curves import Curves, Item
from spin_core.trackers.process import SinkProcess
from tasks.runner.progress import Progress

FOLDER = "trackers"  # beside the store's own: boards are of no use to it, and gc leaves them


class Trackers:
    """One process for each tracker. What goes wrong in one is a warning of the run."""

    def __init__(self, names: Sequence[str], store: Store, head: dict[str, Any], progress: Progress) -> None:
        """`head`: project, run and config of the boards."""
        folder = store.root.parent / FOLDER
        self._curves, self._store, self._progress = Curves(), store, progress
        self._sinks = [
            SinkProcess(
                {"tracker": name, "folder": str(folder), **head},
                folder / "logs" / f"{head['run']}.{name}.log",
                partial(self._said, name),
            )
            for name in dict.fromkeys(names)
        ]

    def live(self, keyed: KeyedStep, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl of a training that is at work."""
        self._send(keyed.step, keyed.key, self._curves.line(keyed.step.stage, keyed.step.place, line))

    def ended(self, step: Step, record: Record) -> None:
        """All that a step has which is in the store, computed now or long ago."""
        try:
            for item in self._curves.of(step.stage, step.place, record.facts, self._store.tree(record.digest)):
                self._send(step, record.key, item)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._progress(step.title, {"note": f"no curves for runtime.trackers ({one_line(error, kind=True)})."})

    def close(self, seconds: float) -> None:
        """Wait for what is on its way, so long for each tracker."""
        for sink in self._sinks:
            sink.close(seconds)

    def _said(self, name: str, event: dict[str, str]) -> None:
        if place := event.get("place"):
            self._progress.step(f"tracker {name}: {place}", None)
        if why := event.get("warning"):
            note = (
                f"{why}. The run goes on without it; once that is put right, the same command sends what its board "
                "lacks (docs/trackers.md)."
            )
            self._progress(f"runtime.trackers: {name}", {"note": note})

    def _send(self, step: Step, key: str, item: Item) -> None:
        at, values = item
        for sink in self._sinks:
            sink.send({"step": step.title, "key": key, "at": at, "values": values})
