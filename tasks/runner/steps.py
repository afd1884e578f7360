"""What the steps of one process share: store, child processes, work pools, and the ledger of what they did."""

from __future__ import annotations

import threading
from itertools import chain
from typing import TYPE_CHECKING, Any

from prefect.logging import get_run_logger

from spin_core.config.runtime import Runtime
from spin_core.errors import SpinloopError, StageFailed
from spin_core.job import Entry
from spin_core.report.failure_page import failure
from spin_core.report.ui_pages import escape
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, Step
from spin_core.sources.resolve import Ref
from spin_core.store.store import Record, Store
from tasks.runner.progress import Progress
from tasks.runner.redo import Redo
from tasks.runner.throughput import Throughput
from tasks.runner.trackers import Trackers

if TYPE_CHECKING:
    from tasks.runner.pools import Batch, Pools


class Steps:
    """A stage's deployment runs its steps with one of these, and a run of the DAG with its `Run`. Not a dataclass:
    Prefect would walk through it as a parameter."""

    def __init__(self, store: Store, children: Children, runtime: Runtime, pools: Pools | None = None):
        self.store, self.children, self.runtime, self.pools = store, children, runtime, pools
        self.throughput = Throughput()
        self.redo = Redo()
        self.takes = store.takes.read()  # once: what is replaced meanwhile, the next run sees
        self.ledger: list[Entry] = []
        self.failures: list[SpinloopError] = []
        self.futures: list[Any] = []
        self.titles: list[str] = []  # of every step submitted so far, in the order of the DAG
        self.finished: set[str] = set()  # titles of those that are in the ledger
        self.grouped: dict[str, str] = {}  # of those that share a task: title → the task's, which reports on them
        self.progress = Progress()
        self.trackers: Trackers | None = None
        store.report = self.progress  # a store on object storage shows what it sends and fetches
        self._ledger_lock = threading.Lock()
        self._keyed: dict[str, KeyedStep] = {}

    def submit(self, task: Any, step: Step, inputs: dict[str, Any], batch: Batch | None = None) -> Any:
        """A future of the step's Ref. `batch`: the steps that share a flow run where a work pool computes them."""
        self.titles.append(step.title)
        self.futures.append(task.submit(self, step, inputs, batch))
        return self.futures[-1]

    def keyed(self, step: Step, inputs: dict[str, Any]) -> KeyedStep:
        """The step with its inputs (one list of references where shards of one task gave a list each). Prefect
        wants the name of a task, and then its work: both have the same key, made once."""
        reads = {name: [*chain(*map(listed, v))] if isinstance(v, list) else v for name, v in inputs.items()}
        keyed = KeyedStep(step, reads, self.takes)
        # Steps that a person starts on a pool may share a title; Prefect may have copied step and inputs.
        same = self._keyed.setdefault(step.title, keyed)
        return same if same == keyed else keyed

    def live(self, keyed: KeyedStep, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl of a training that is at work, for the trackers."""
        if self.trackers:
            self.trackers.live(keyed, line)

    def note(self, step: Step, record: Record, cached: bool) -> Ref:
        """Enter a finished step into the ledger; its output as a Ref."""
        seconds, summary = record.facts.get("seconds"), record.facts.get("summary", {})
        state = "Cached" if cached else "ran"
        entry = Entry(
            step.stage, step.label, record.key, state, seconds, record.digest, summary=summary, place=step.place
        )
        with self._ledger_lock:
            self.ledger.append(entry)
            self.finished.add(step.title)
        if step.title not in self.grouped:
            self.progress.step(f"{state:<6}  {step.title} {record.key[:6]}", None if cached else seconds)
        self.throughput.add(step, record, cached)
        if self.trackers:
            self.trackers.ended(step, record)
        if step.stage == "gather" and (line := self.throughput.line(step.place.iteration)):
            self.progress.step(line, None)
        console_note = getattr(step.module, "console_note", None)
        if console_note and (text := console_note(summary)):
            self.progress.step(f"        {text}", None)
        return Ref(digest=record.digest)

    def ahead(self) -> list[str]:
        """Titles of the steps that were submitted and have not ended, in the order of the DAG."""
        return [title for title in self.titles if title not in self.finished]

    def failed(self, step: Step, error: SpinloopError) -> None:
        """Enter the failure of a step; of the first one the UI gets a page. Others may only not have begun by it."""
        if not self.failures:
            text = failure(step.title, step.stage, error)
            self.progress.meters.page("failed", text, f"Why {escape(step.title)} failed, and what to do.")
        self.failures.append(error)

    def settle(self) -> None:
        """Wait until every step that was submitted has ended, however it did."""
        for future in self.futures:
            future.wait()
        self.progress.close()

    def counts(self) -> dict[str, int]:
        """How many steps ran, and how many were in the store."""
        ran = sum(entry.state == "ran" for entry in self.ledger)
        return {"ran": ran, "cached": len(self.ledger) - ran}

    def unexpected(self, error: Exception) -> SpinloopError:
        """What Prefect says of the first task that failed outside of its step; later ones are only not ready."""
        get_run_logger().error("Unexpected error.", exc_info=error)
        self.settle()
        failed = (future.state for future in self.futures if not future.state.is_completed())
        message = next((state.message for state in failed if state.is_final()), None)
        return StageFailed(message or f"{type(error).__name__}: {error}")


def listed(value: Any) -> list:
    """One reference, or a list of them, as a list."""
    return value if isinstance(value, list) else [value]
