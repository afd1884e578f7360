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
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed

from spin_core.errors import ChildDied, SpinloopError, StageFailed
from spin_core.runtime.redo import Redone, recompute, replace
from spin_core.runtime.step import KeyedStep, Step, compute, in_words, look_up
from spin_core.sources.resolve import Ref
from spin_core.store.store import Record
from tasks.runner.pools import Batch
from tasks.runner.run import Run
from tasks.runner.steps import Steps

RETRIES = 2  # of a step whose process died; a shard may lose its process twice before its machine is at fault


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
        retry_delay_seconds=0,
        retry_condition_fn=lambda task, task_run, state: isinstance(state.result(raise_on_failure=False), ChildDied),
        persist_result=False,
        cache_policy=NO_CACHE,  # and no tags: each takes a request for a concurrency slot, 12 s of a 20 s cached run
    )(_perform)


def _perform(run: Steps, step: Step, inputs: dict, batch: Batch | None = None) -> Any:
    """One step, in a task of its own."""
    ref, cached = perform(run, run.keyed(step, inputs), batch, last=task_run.run_count > RETRIES)
    return Completed(name="Cached", data=ref) if cached else ref


def _run_name(parameters: dict) -> str:
    """`finetune[iter 1] 3fa9c1`: the stage, where it stands in the DAG, the beginning of its key."""
    keyed = parameters["run"].keyed(parameters["step"], parameters["inputs"])
    return f"{keyed.step.title} {keyed.key[:6]}"


def perform(run: Steps, keyed: KeyedStep, batch: Batch | None, last: bool) -> tuple[Ref, bool]:
    """One step: look it up, else compute and publish it; and whether it was there. `last`: a process that dies now
    fails the run."""
    step = keyed.step
    try:
        record = look_up(run.store, keyed)
        cached = record is not None
        if run.redo.takes(step):
            made = _again(run, keyed, batch) if record else None
            if made:
                record, cached = made.record, False
            else:
                run.redo.fresh.append(step.title)
        if record is None:
            record, cached = _missing(run, keyed, batch)
            if step.title not in run.grouped:
                get_run_logger().info("%s: %s", step.title, in_words(record.facts["summary"]))
    except SpinloopError as error:
        if not isinstance(error, ChildDied) or last:
            run.failed(step, error)
        raise
    except Exception as error:  # the steps after this one would hide it: they are only not ready
        run.failed(step, StageFailed(f"{step.title}: {type(error).__name__}: {error}"))
        raise
    return run.note(step, record, cached), cached


def _again(run: Steps, keyed: KeyedStep, batch: Batch | None) -> Redone | None:
    """What came of a step that is computed again for `--redo`, here or on its work pool, and that is kept in
    `run.redo`; its record is with `--replace` that of the new output. None where the pool had it to compute for the
    first time."""
    step = keyed.step
    title, pool = _begin(run, step)

    def send(event: dict) -> None:
        if "metrics" not in event:  # the trackers have the curve of the output that stands
            run.progress(title, event)

    with run.progress.at_work(title, pool):
        if run.pools and pool:
            made = run.pools.again(keyed, batch, "replace" if run.redo.replace else "compare", send)
        else:
            again = replace if run.redo.replace else recompute
            made = again(run.store, keyed, run.runtime, run.children, send)
    if made:
        run.redo.done[step.title] = made
    return made


def _missing(run: Steps, keyed: KeyedStep, batch: Batch | None) -> tuple[Record, bool]:
    """The record of a step that was not in the store, and whether somebody else computed it meanwhile."""
    step = keyed.step
    title, pool = _begin(run, step)

    def send(event: dict) -> None:
        if "metrics" in event:
            run.live(keyed, event["metrics"])
        else:
            run.progress(title, event)

    with run.progress.at_work(title, pool):
        if run.pools and pool:
            return run.pools.compute(keyed, batch, send)
        if step.title not in run.grouped:
            get_run_logger().info("%s runs", step.title)
        return compute(run.store, keyed, run.runtime, run.children, send)


def _begin(run: Steps, step: Step) -> tuple[str, str]:
    """The title under which a step that is to be computed shows its progress, and its work pool, empty for here.
    Raises StageFailed where another step failed: then no more are begun."""
    if run.failures:
        raise StageFailed(f"{step.title}: not begun, because another step failed.")
    return run.grouped.get(step.title, step.title), (run.pools and run.pools.of(step.stage)) or ""
