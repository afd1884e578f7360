"""The one place that knows both Prefect and the store: asks the store first, runs the stage on a miss, says *Cached*
on a hit.

Prefect's own result cache is off (DESIGN §4: it runs code from stored files and does not check what it reads). A hit
is returned as the state `Completed(name="Cached")`, which `submit(...).result()` resolves to its data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed

from spin_core.errors import ChildDied, SpinloopError, StageFailed
from spin_core.step import Step, compute, look_up
from spin_core.store import keys
from tasks.run import Run

RETRIES = 2  # of a step whose process died; a shard may be hit twice before its machine is at fault


def stage(module: ModuleType) -> Callable:
    """Make a Prefect task of a function that describes a step.

    The function takes the run and what the step reads, and returns `(label, config, inputs)`. Calling the result
    submits the step and returns a future of its Ref; in a plan it looks the step up and returns a Ref or Pending.
    Only a child process that died is tried again (RETRIES times): bad input stays bad.
    """
    name = module.__name__.rpartition(".")[2]
    run_step = task(
        name=name,
        task_run_name=_run_name,  # type: ignore[arg-type]
        retries=RETRIES,
        retry_condition_fn=_worth_a_retry,
        persist_result=False,
        cache_policy=NO_CACHE,  # and no tags: each asks the server for a concurrency slot, 12 s of a 20 s cached run
    )(_perform)

    def decorate(describe: Callable) -> Callable:
        @wraps(describe)
        def submit(run: Run, *args: Any, **kwargs: Any) -> Any:
            label, config, inputs = describe(run, *args, **kwargs)
            step = Step(module, label, config)
            if run.planning:
                return run.planning.step(run, step, inputs)
            run.titles.append(step.title)
            run.futures.append(run_step.submit(run, step, inputs))
            return run.futures[-1]

        return submit

    return decorate


def _perform(run: Run, step: Step, inputs: dict) -> Any:
    """One step: look it up, else compute and publish it."""
    try:
        record = look_up(run.store, step, inputs)
        cached = record is not None
        if record is None and run.failures:
            raise StageFailed(f"{step.title}: not begun, because another step failed.")
        if record is None:
            log = get_run_logger()
            log.info("%s runs", step.title)
            record, cached = compute(
                run.store,
                step,
                inputs,
                run.config.runtime,
                run.children,
                send=lambda event: run.progress(step.title, event),
            )
            log.info("%s: %s", step.title, record.facts["summary"])
    except SpinloopError as error:
        if not isinstance(error, ChildDied) or task_run.run_count > RETRIES:
            run.failures.append(error)
        raise
    ref = run.note(step, record, cached)
    return Completed(name="Cached", data=ref) if cached else ref


def _run_name(parameters: dict) -> str:
    """`finetune[iter 1] 3fa9c1`: the stage, where it stands in the DAG, the beginning of its key."""
    step: Step = parameters["step"]
    return f"{step.title} {keys.key_of(step.payload(parameters['inputs']))[:6]}"


def _worth_a_retry(task: Any, task_run: Any, state: Any) -> bool:
    error = state.result(raise_on_failure=False)
    return isinstance(error, ChildDied)
