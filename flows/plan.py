"""Before a run: what it would do (`plan`), and whether it can begin (`check`)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from flows.spin import dag, sources
from spin_core import gpus
from spin_core.child import Children
from spin_core.config import Config
from spin_core.engines import vllm_env
from spin_core.errors import BadInput
from spin_core.harness.calls import check_here as check_harness
from spin_core.sources import resolve
from spin_core.store.store import NAME, Store
from tasks.ledger import Entry
from tasks.planning import Planner
from tasks.run import Run


def plan(config: Config, store: str, base_dir: Path) -> tuple[list[Entry], list[str]]:
    """What a run would do: its ledger, and what the store has to say of itself. Computes nothing but the rows, where
    the dataset is another than before; nothing is written to the store."""
    with TemporaryDirectory(prefix="spinloop-plan-") as folder, Children(1) as children:
        drafts = Store(Path(folder))
        artifacts = Store(Path(store), create=False) if (Path(store) / NAME).exists() else drafts
        run = Run(config, artifacts, children, base_dir, Planner(drafts))
        dag(run)
    return run.ledger, artifacts.notes


def next_iteration(config: Config, store: str, base_dir: Path) -> int:
    """The first iteration whose evaluated model the store does not have; `config.iterations` where it has them all."""
    ledger, _ = plan(config, store, base_dir)
    there = {entry.title for entry in ledger if entry.state == "cached"}
    wanted = ({f"finetune[iter {t}]", f"evaluate[θ_{t + 1}]"} for t in range(config.iterations))
    return next((t for t, steps in enumerate(wanted) if not steps <= there), config.iterations)


def check(config: Config, store: str, base_dir: Path, pool: str = "here") -> None:
    """Raise what is wrong with the store, the sources or this machine's engines before anything is waited for. `pool`:
    of the stages that `runtime.pools` does not name."""
    if config.runtime.approve and pool == "here":
        raise BadInput(
            "runtime.approve: only a run of a deployment can wait for a person; start one (README: Run it on a "
            "server), or leave it out."
        )
    engines = {config.at(t).generate.engine for t in range(config.iterations)}
    if "vllm" in engines and config.runtime.pools.of("generate", pool) == "here":
        vllm_env.interpreter(config.runtime.vllm_python)
        gpus.check_unshared(config.runtime, len(gpus.visible()))
    if config.harness and config.runtime.pools.of("harness", pool) == "here":
        check_harness(config.harness, config.runtime)
        if config.harness.backend == "vllm":
            gpus.check_unshared(config.runtime, len(gpus.visible()))
    if config.harness and config.harness.include_path:
        resolve(config.harness.include_path, "tasks", "", base_dir)
    if config.runtime.pools.any_here(pool):
        gpus.groups(config.runtime, gpus.visible())
    sources(Run(config, Store(Path(store)), Children(0), base_dir, Planner()))
