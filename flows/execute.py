"""Runs the DAG of flows/spin.py inside a Prefect flow: here for the command line, in flows/server/deployed.py for
pools."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State

from flows import live
from flows.ending import heeding_sigterm, outcome_known
from flows.spin import dag, sources
from flows.stages import OPTIONS, failed
from spin_core.config.profile import Config
from spin_core.runtime import gpus
from spin_core.runtime.child import Children
from spin_core.runtime.leader import leading
from spin_core.store.opening import open_store
from tasks.reformat import reformat
from tasks.runner import artifacts
from tasks.runner.pools import Pools
from tasks.runner.redo import Redo, parse
from tasks.runner.run import Run


NOTHING: list[str] = []


@flow(name="spin", flow_run_name="{config.name}, {config.iterations} iterations, seed {config.seed}", **OPTIONS)
def spin(config: Config, store: str = ".spinloop", base_dir: str = ".", redo: list[str] = NOTHING) -> dict | State:
    """Run every iteration of a profile. What the store already has is not computed again, but for the steps `redo`
    (`finetune:0`), which are compared."""
    try:
        return run_dag(config, store, Path(base_dir), "here", redo=parse(redo))
    except Exception as error:
        outcome_known(error)
        return failed(error)


def run_dag(
    config: Config, store: str, base_dir: Path, pool: str, origin: dict | None = None, follow: str = "",
    redo: Redo | None = None,
) -> dict:  # fmt: skip
    """Inside a flow: run the DAG, lay out its results and show them in the UI. `pool`: of the stages that
    `runtime.pools` does not name; `origin`, `follow`: see Run."""
    opened = open_store(store)
    here = config.runtime.pools.any_here(pool)
    seen = gpus.groups(config.runtime, gpus.visible()) if here else []
    with (
        opened.using(),
        leading(opened.root, config.runtime) if here else nullcontext() as leader,
        Children(config.runtime.workers, seen, leader) as children,
        Pools(opened, config.runtime, pool) as pools,
        heeding_sigterm(children) if pool == "here" else nullcontext(),
    ):
        run = Run(config, opened, children, base_dir, pools=pools, origin=origin, follow=follow)
        run.progress.view = live.view(run.ahead)
        try:
            run.redo = redo or run.redo
            outcome = run.finish(lambda: dag(run).result())
            outcome["notes"] = [*outcome["notes"], *run.redo.report()]
        finally:
            run.progress.close()  # Ctrl-C too
        outcome_known(outcome)
        artifacts.show(run, run.report, Path(outcome["folder"]))
        return outcome


def rows_only(config: Config, store: str, base_dir: Path, origin: dict) -> dict[str, int]:
    """Inside a flow: the first step alone. How many steps ran, and how many were cached."""
    opened = open_store(store)
    with opened.using(), Children(1) as children:
        run = Run(config, opened, children, base_dir, origin=origin, follow="dataset")
        reformat(run, sources(run)[0])
        run.settle()
        if run.failures:
            raise run.failures[0]
        return run.counts()
