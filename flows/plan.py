"""Before a run: what it would do (`planned`), and whether it can begin (`check`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flows.sheet import Costs, costs, refusal, rows
from flows.spin import dag, sources
from spin_core.config.profile import Config
from spin_core.engines.harness.calls import check_here as check_harness
from spin_core.engines.table import ENGINES
from spin_core.errors import BadInput, Unreachable
from spin_core.estimate import hardware
from spin_core.estimate.todo import Data
from spin_core.job import Entry
from spin_core.runtime import gpus
from spin_core.runtime.child import Children
from spin_core.sources.resolve import resolve
from spin_core.store.opening import exists, open_store
from spin_core.store.store import Store
from tasks.runner.planning import Planner
from tasks.runner.run import Run


@dataclass(frozen=True)
class Plan:
    """What a run would do: its ledger, what the store has to say of itself, and what is known of the rows."""

    ledger: list[Entry]
    notes: list[str]
    data: Data | None = None


def planned(config: Config, store: str, base_dir: Path, measure: bool = False) -> Plan:
    """What a run would do; of its rows something is known where they are to be measured. Computes nothing but the rows,
    where the dataset is another than before; nothing is written to the store."""
    with TemporaryDirectory(prefix="spinloop-plan-") as folder, Children(1) as children:
        drafts = Store(Path(folder))
        artifacts = open_store(store, create=False, read_only=True, runs=False) if exists(store) else drafts
        run = Run(config, artifacts, children, base_dir, Planner(drafts))
        dag(run)
        return Plan(run.ledger, artifacts.notes, rows(run) if measure else None)


def costed(config: Config, store: str, base_dir: Path, gpu: str = "", count: int = 0) -> tuple[Plan, Costs]:
    """The plan and its cost sheet, for `count` GPUs of the name `gpu` a node, or this machine's GPUs. Where the hub
    cannot be reached the ledger is empty, a note says why, and the costs are those of a run of which nothing is
    cached."""
    if gpu or count:  # a misspelt name is refused before a dataset is read
        hardware.choose(gpu, count, True)
    try:
        made = planned(config, store, base_dir, measure=True)
    except Unreachable as error:
        made = Plan([], [str(error)])
    return made, costs(config, base_dir, made.ledger or None, made.data, gpu, count)


def next_iteration(config: Config, store: str, base_dir: Path) -> int:
    """The first iteration whose evaluated model the store does not have; `config.iterations` where it has them all."""
    ledger = planned(config, store, base_dir).ledger
    first = config.start.iteration
    there = {(entry.stage, entry.place.model) for entry in ledger if entry.state == "cached"}
    wanted = ({("finetune", t + 1), ("evaluate", t + 1)} for t in range(first, config.iterations))
    return next((t for t, steps in enumerate(wanted, first) if not steps <= there), config.iterations)


def check(config: Config, store: str, base_dir: Path, pool: str = "here") -> None:
    """Raise what is wrong with the store, the sources or this machine's engines before anything is waited for. `pool`:
    of the stages that `runtime.pools` does not name."""
    if config.runtime.approve and pool == "here":
        raise BadInput(
            "runtime.approve: only a run of a deployment can wait for a person; start one (README: Run it on a "
            "server), or leave it out."
        )
    if config.runtime.pools.of("generate", pool) == "here":
        for engine in sorted({config.at(t).generate.engine for t in range(config.iterations)}):
            ENGINES[engine].check(config.runtime)
    if config.harness and config.runtime.pools.of("harness", pool) == "here":
        check_harness(config.harness, config.runtime)
    if config.harness and config.harness.include_path:
        resolve(config.harness.include_path, "tasks", "", base_dir)
    if config.runtime.pools.any_here(pool):
        gpus.groups(config.runtime, gpus.visible())
    sources(Run(config, open_store(store, runs=False), Children(0), base_dir, Planner()))
    _check_memory(config, store, base_dir, pool)


def _check_memory(config: Config, store: str, base_dir: Path, pool: str) -> None:
    """Raise BadInput where a stage that is not cached cannot fit into the GPUs that the driver shows."""
    if not refusal(config, base_dir, pool):  # of all stages: what is cached is looked up only if it matters
        return
    ledger = planned(config, store, base_dir).ledger
    if why := refusal(config, base_dir, pool, {entry.stage for entry in ledger if entry.state != "cached"}):
        raise BadInput(f"{why} `spinloop plan` shows what each stage needs.")
