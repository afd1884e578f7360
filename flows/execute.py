"""Runs the DAG of flows/spin.py inside a Prefect flow: here for the command line, in flows/server/deployed.py for
pools."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from flows import live
from flows.ending import heeding_sigterm, outcome_known
from flows.spin import dag, sources
from flows.stages import OPTIONS, failed
from spin_core.analysis.format import plural
from spin_core.config.profile import Config
from spin_core.errors import one_line, printable
from spin_core.runtime import gpus
from spin_core.runtime.child import Children
from spin_core.runtime.leader import leading
from spin_core.store.opening import open_store
from tasks.reformat import reformat
from tasks.runner import artifacts
from tasks.runner.pools import Pools
from tasks.runner.redo import Redo, parse
from tasks.runner.run import Run

CHANGES = 3  # settings in a run's name

NOTHING: list[str] = []
NOT_STARTED = "Not started"
"""The state of a run that ended after it looked at its dataset; its tag is `not-started`."""
_tagging = threading.Lock()  # of two the last one stays


def title(name: str, iterations: int | None, changed: Iterable[str]) -> str:
    """What a run is called in the UI: `demo, 2 iterations, finetune.beta=0.5`. `changed`: what is not as in the
    profile, as `--set` takes it."""
    parts = [name, *([plural(iterations, "iteration")] if iterations is not None else [])]
    settings = [one_line(printable(one), 40) for one in changed if one.partition("=")[0] not in ("name", "iterations")]
    more = [f"and {len(settings) - CHANGES} more"] if len(settings) > CHANGES else []
    return ", ".join([*parts, *settings[:CHANGES], *more])


def redone(parameters: dict) -> list[str]:
    """`redo generate:1` and `replace`, for a run's name, where its parameters ask for that."""
    asked = [f"redo {one}" for one in parameters.get("redo") or ()]
    return [*asked, *["replace"] * bool(asked and parameters.get("replace"))]


def _name() -> str:
    config, parameters = flow_run.parameters["config"], flow_run.parameters
    return title(config.name, config.iterations, [*redone(parameters), *parameters.get("changed", ())])


def tag(profile: str, *more: str) -> threading.Thread:
    """Give the run of the flow that calls the tag `profile:<name>` and `more`, from a thread, which nothing has to wait
    for. By a tag of the flow's context all its tasks would have it, and each task with a tag takes a request for a
    concurrency slot."""
    run, tags = UUID(flow_run.id), sorted({*flow_run.tags, f"profile:{profile}", *more})

    def send() -> None:
        try:
            with _tagging, get_client(sync_client=True, httpx_settings={"timeout": 30.0}) as client:
                client.update_flow_run(run, tags=tags)
        except Exception as error:  # the run is found by its name, too
            get_run_logger().warning(f"This run has no tag of its profile ({one_line(error, kind=True)}).")

    thread = threading.Thread(target=contextvars.copy_context().run, args=[send], daemon=True)
    thread.start()
    return thread


@flow(name="spin", flow_run_name=_name, **OPTIONS)
def spin(
    config: Config, store: str = ".spinloop", base_dir: str = ".", changed: tuple[str, ...] = (),
    redo: list[str] = NOTHING, replace: bool = False,
) -> dict | State:  # fmt: skip
    """Run every iteration of a profile. What the store already has is not computed again, but for the steps `redo`
    (`finetune:0`), which are compared, or with `replace` taken as they come out now. `changed`: what of `config` is not
    as in its profile, for the run's name."""
    tag(config.name)
    try:
        outcome = run_dag(config, store, Path(base_dir), "here", redo=parse(redo, replace))
        said = outcome["not_started"]
        return Completed(name=NOT_STARTED, message=said, data=outcome) if said else outcome
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
        if outcome["not_started"]:
            artifacts.looked(run)
            tag(config.name, "not-started").join(30)
        else:
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
