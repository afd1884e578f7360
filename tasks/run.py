"""One execution of the DAG, or one plan of it: what the tasks share, and the ledger of what they did."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from spin_core import sources
from spin_core.child import Children
from spin_core.config import Config
from spin_core.errors import SpinloopError, StoreError
from spin_core.step import Ref, Step, shards, source
from spin_core.store.store import Record, Store
from tasks.ledger import Entry, Pending, lay_out, run_name
from tasks.planning import Planner
from tasks.progress import Progress
from tasks.throughput import Throughput


class Run:
    """Config, store and child processes of one run. Not a dataclass: Prefect would walk through it as a parameter."""

    def __init__(
        self, config: Config, store: Store, children: Children, base_dir: Path, planning: Planner | None = None
    ):
        self.config, self.store, self.children = config, store, children
        self.base_dir, self.planning = base_dir, planning
        self.throughput = Throughput()
        self.ledger: list[Entry] = []
        self.failures: list[SpinloopError] = []
        self.futures: list[Any] = []
        self.titles: list[str] = []  # of every step submitted so far, in the order of the DAG
        self.progress = Progress()

    def source(self, path: str, kind: sources.Kind, revision: str = "", split: str = "") -> Ref:
        """A model or dataset outside the store, by content. Raises BadInput naming it."""
        return source(path, kind, revision, self.base_dir, split)

    def shards(self, rows: Any) -> list[Any]:
        """The shards of prompts that `rows` (a future, or in a plan a Ref or Pending) lists."""
        if isinstance(rows, Pending):
            return [rows]
        ref = rows if isinstance(rows, Ref) else rows.result()
        return list(shards(self.planning.holder(self.store, ref) if self.planning else self.store, ref))

    def note(self, step: Step, record: Record, cached: bool) -> Ref:
        """Enter a finished step into the ledger; its output as a Ref."""
        seconds, summary = record.facts.get("seconds"), record.facts.get("summary", {})
        state = "Cached" if cached else "ran"
        self.ledger.append(Entry(step.stage, step.label, record.key, state, seconds, record.digest, summary=summary))
        self.progress.step(f"{state:<6}  {step.title} {record.key[:6]}", None if cached else seconds)
        self.throughput.add(step, record, cached)
        if step.stage == "gather" and (line := self.throughput.line(step.label)):
            self.progress.step(line, None)
        return Ref(digest=record.digest)

    def finish(self, outcome: Any) -> dict:
        """Wait for the last step and lay out `runs/<name>/` for people; after a failure too, for what did finish.

        Raises the first failure once every step that was already at work has ended (and is published).
        """
        ref, name = None, run_name(self.config)
        try:
            ref = outcome()
        except SpinloopError as error:
            self.failures.append(error)
        except Exception:
            if not self.failures:
                raise
        for future in self.futures:
            future.wait()
        self.progress.close()
        if ref is None:
            with suppress(StoreError):  # the first failure is what is told; often it is this one
                lay_out(self.store, name, self.titles, self.ledger, None)
                self.throughput.write(self.store, name)
            raise self.failures[0]
        folder = lay_out(self.store, name, self.titles, self.ledger, self.store.tree(ref.digest))
        self.throughput.write(self.store, name)
        ran = sum(entry.state == "ran" for entry in self.ledger)
        counts = {"ran": ran, "cached": len(self.ledger) - ran, "notes": self.store.notes}
        return {"run": name, "folder": str(folder), "report": str(folder / "report.html"), **counts}
