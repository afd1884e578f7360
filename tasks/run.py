"""One execution of the DAG, or one plan of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect.logging import get_run_logger

from spin_core import run_card, sources
from spin_core.child import Children
from spin_core.config import Config
from spin_core.errors import SpinloopError, StageFailed, StoreError
from spin_core.step import Ref, Step, shards, source
from spin_core.store.store import Record, Store
from tasks import artifacts, events
from tasks.ledger import Pending, card, lay_out, run_name
from tasks.planning import Planner
from tasks.pools import Pools
from tasks.steps import Steps


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
        self.sources: list[tuple[str, Ref, str]] = []
        self.progress.meters.profile = config.name

    def note(self, step: Step, record: Record, cached: bool) -> Ref:
        events.tell(self, step, record, cached)
        return super().note(step, record, cached)

    def source(self, path: str, kind: sources.Kind, revision: str = "", split: str = "") -> Ref:
        """A model or dataset outside the store, by content. Raises BadInput naming it."""
        self.sources.append((kind, source(path, kind, revision, self.base_dir, split, self.store.notes), revision))
        return self.sources[-1][1]

    def shards(self, rows: Any) -> list[Any]:
        """The shards of prompts that `rows` (a future, or in a plan a Ref or Pending) lists."""
        if isinstance(rows, Pending):
            return [rows]
        ref = rows if isinstance(rows, Ref) else rows.result()
        return list(shards(self.planning.holder(self.store, ref) if self.planning else self.store, ref))

    def finish(self, outcome: Any) -> dict:
        """Wait for the last step and lay out `runs/<name>/` and the UI's artifacts for people; after a failure too,
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
                self.failures.append(self._unforeseen(error))
        self.settle()
        if ref is None:
            with suppress(StoreError):  # the first failure is what is told; often it is this one
                self._lay_out(name, None)
            raise self.failures[0]
        folder = self._lay_out(name, self.store.tree(ref.digest))
        artifacts.show(self, self.store.tree(ref.digest), folder)
        told = {"run": name, "folder": str(folder), "report": str(folder / "report.html"), "notes": self.store.notes}
        return {**told, "stopped": self.stopped, **self.counts()}

    def _lay_out(self, name: str, report: Path | None) -> Path:
        self.store.write_run_file(name, run_card.SOURCES, run_card.sources_file(self.sources))
        folder = lay_out(self.store, name, self.titles, self.ledger, report)
        self.throughput.write(self.store, name)
        card(self.store, name)
        return folder

    def _unforeseen(self, error: Exception) -> SpinloopError:
        """What Prefect says of the first task that failed outside of its step; later ones are only not ready."""
        get_run_logger().error("This was not foreseen.", exc_info=error)
        self.settle()
        failed = (future.state for future in self.futures if not future.state.is_completed())
        said = next((state.message for state in failed if state.is_final()), None)
        return StageFailed(f"{said or f'{type(error).__name__}: {error}'}")
