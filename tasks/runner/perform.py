"""One step inside a task: looked up, else computed and published, and entered into the ledger."""

from __future__ import annotations

from functools import partial

from prefect.logging import get_run_logger

from spin_core.errors import ChildDied, SpinloopError, StageFailed
from spin_core.runtime.step import KeyedStep, compute, in_words, look_up
from spin_core.sources.references import Ref
from spin_core.store.store import Record
from tasks.runner.pools import Batch
from tasks.runner.steps import Steps

RETRIES = 2  # of a step whose process died; a shard may be hit twice before its machine is at fault


def perform(run: Steps, keyed: KeyedStep, batch: Batch | None, last: bool) -> tuple[Ref, bool]:
    """One step: look it up, else compute and publish it; and whether it was there. `last`: a process that dies now
    fails the run."""
    step = keyed.step
    try:
        record = look_up(run.store, keyed)
        cached = record is not None
        if record is None:
            record, cached = _missing(run, keyed, batch)
            if step.title not in run.grouped:
                get_run_logger().info("%s: %s", step.title, in_words(record.facts["summary"]))
    except SpinloopError as error:
        if not isinstance(error, ChildDied) or last:
            run.failures.append(error)
        raise
    except Exception as error:  # the steps after this one would hide it: they are only not ready
        run.failures.append(StageFailed(f"{step.title}: {type(error).__name__}: {error}"))
        raise
    return run.note(step, record, cached), cached


def _missing(run: Steps, keyed: KeyedStep, batch: Batch | None) -> tuple[Record, bool]:
    """The record of a step that was not in the store, and whether somebody else computed it meanwhile."""
    step = keyed.step
    if run.failures:
        raise StageFailed(f"{step.title}: not begun, because another step failed.")

    send = partial(run.progress, run.grouped.get(step.title, step.title))
    if run.pools and run.pools.of(step.stage):
        return run.pools.compute(keyed, batch, send)
    if step.title not in run.grouped:
        get_run_logger().info("%s runs", step.title)
    return compute(run.store, keyed, run.runtime, run.children, send)
