"""One execution of the DAG, or one plan of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from spin_core.config.profile import Config
from spin_core.errors import SpinloopError, StoreError
from spin_core.report import run_facts
from spin_core.runtime.child import Children
from spin_core.runtime.step import Step, shards
from spin_core.sources import resolve
from spin_core.sources.references import Ref, SourceKind
from spin_core.store.store import Record, Store
from tasks.runner import events
from tasks.runner.ledger import Pending, card, lay_out, run_name
from tasks.runner.planning import Planner
from tasks.runner.pools import Pools
from tasks.runner.steps import Steps


class Run(Steps):
    """The steps of one config. `planning`: looks them up instead. `pools`: where missing stages run; None: here.
    `origin`: the parameters of the deployment run that this is, and `follow`: of which new artifact (`dataset`,
    `model`) another run is to go on, for the events that start it."""

    def __init__(
        self,
        config: Config,
        store: Store,
        children: Children,
        base_dir: Path,
        planning: Planner | None = None,
        pools: Pools | None = None,
        origin: dict | None = None,
        follow: str = "",
    ):
        super().__init__(store, children, config.runtime, pools)
        self.config, self.base_dir, self.planning = config, base_dir, planning
        self.origin, self.follow = origin or {}, follow
        self.stopped = ""  # why the gate ended the run before its last iteration, if it did
        self.report = Path()  # of a finished run: the tree of its report
        self.sources: list[tuple[str, Ref, str]] = []
        self.progress.meters.profile = config.name

    def note(self, step: Step, record: Record, cached: bool) -> Ref:
        events.emit(self.config, step, record, cached, self.origin, self.follow)
        return super().note(step, record, cached)

    def source(self, path: str, kind: SourceKind, revision: str = "", split: str = "") -> Ref:
        """A model or dataset outside the store, by content, or the digest of an artifact. Raises BadInput naming it."""
        ref = resolve.find(self.store, path, kind, revision, self.base_dir, split)
        self.sources.append((kind, ref, revision))
        return ref

    def shards(self, rows: Any) -> list[Any]:
        """The shards of prompts that `rows` (a future, or in a plan a Ref or Pending) lists."""
        if isinstance(rows, Pending):
            return [rows]
        ref = rows if isinstance(rows, Ref) else rows.result()
        return list(shards(self.planning.holder(self.store, ref) if self.planning else self.store, ref))

    def finish(self, outcome: Callable[[], Ref]) -> dict:
        """Wait for the last step (`outcome` gives its Ref) and lay out `runs/<name>/` for people; after a failure too,
        for what did finish.

        Raises the first failure once every step that was already at work has ended (and is published).
        """
        ref, name = None, run_name(self.config)
        try:
            ref = outcome()
        except SpinloopError as error:
            self.failures.append(error)
        except Exception as error:
            if not self.failures:
                self.failures.append(self.unexpected(error))
        self.settle()
        if ref is None:
            with suppress(StoreError):  # the first failure is what is raised; often it is this one
                self._lay_out(name, None)
            raise self.failures[0]
        self.report = self.store.tree(ref.digest)
        folder = self._lay_out(name, self.report)
        return {
            "run": name,
            "folder": str(folder),
            "report": str(folder / "report.html"),
            "notes": self.store.notes,
            "stopped": self.stopped,
            **self.counts(),
        }

    def _lay_out(self, name: str, report: Path | None) -> Path:
        self.store.write_run_file(name, run_facts.SOURCES, run_facts.sources_file(self.sources))
        folder = lay_out(self.store, name, self.titles, self.ledger, report)
        self.throughput.write(self.store, name)
        card(self.store, name)
        return folder
