"""Looks the step up first, runs its stage where it is missing (here, or on its work pool); else the task is *Cached*.

Prefect's own result cache is off: it runs code from stored files and does not check what it reads. A cached step is
returned as the state `Completed(name="Cached")`, which `submit(...).result()` resolves to its data.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from types import ModuleType
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run
from prefect.states import Completed

from spin_core.errors import ChildDied
from spin_core.runtime.step import Step
from tasks.runner.perform import RETRIES, perform
from tasks.runner.pools import Batch
from tasks.runner.run import Run
from tasks.runner.steps import Steps


def stage(describe: Callable[..., tuple[Step, dict[str, Any]]]) -> Callable[..., Any]:
    """Make a Prefect task of a function that describes a step.

    The function takes the run and what the step reads, and returns the step and its inputs. Calling the result submits
    the step and returns a future of its Ref; in a plan it looks the step up and returns a Ref or Pending."""

    @wraps(describe)
    def submit(run: Run, *args: Any, batch: Batch | None = None, **kwargs: Any) -> Any:
        step, inputs = describe(run, *args, **kwargs)
        if run.planning:
            return run.planning.step(run, step, inputs)
        return run.submit(task_of(step.module), step, inputs, batch)

    return submit


@cache
def task_of(module: ModuleType) -> Task:
    """The Prefect task of a stage, `(steps, step, inputs, batch)` to a Ref. Only a process that died is tried again."""
    return task(
        name=module.NAME,
        task_run_name=_run_name,  # type: ignore[arg-type]
        retries=RETRIES,
        retry_condition_fn=_worth_a_retry,
        persist_result=False,
        cache_policy=NO_CACHE,  # and no tags: each asks the server for a concurrency slot, 12 s of a 20 s cached run
    )(_perform)


def _perform(run: Steps, step: Step, inputs: dict, batch: Batch | None = None) -> Any:
    """One step, in a task of its own."""
    ref, cached = perform(run, run.keyed(step, inputs), batch, last=task_run.run_count > RETRIES)
    return Completed(name="Cached", data=ref) if cached else ref


def _run_name(parameters: dict) -> str:
    """`finetune[iter 1] 3fa9c1`: the stage, where it stands in the DAG, the beginning of its key."""
    keyed = parameters["run"].keyed(parameters["step"], parameters["inputs"])
    return f"{keyed.step.title} {keyed.key[:6]}"


def _worth_a_retry(task: Any, task_run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), ChildDied)
