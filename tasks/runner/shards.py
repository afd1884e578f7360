"""Hundreds of shards and more, several in one Prefect task: each keeps its own key, record and line of the ledger.

A task costs 15 ms of this process, and its server three events. With one for each of 2,000 cached shards a run took
50 s, and the server's database had 1 of 3 task runs when it ended (tests/benchmarks/bench_growth.md).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.states import Completed

from spin_core.errors import ChildDied
from spin_core.runtime.step import KeyedStep, Step
from spin_core.sources.resolve import Ref
from tasks.runner.pools import Batch
from tasks.runner.run import Run
from tasks.runner.stage import RETRIES, perform

ALONE = 500  # shards up to which each has a task
TASKS = 250  # that more shards are dealt out to: few enough to see, many enough that the last ones end together
REPORTS = 20  # lines of the terminal for all shards of an iteration


def per_task(shards: int) -> int:
    """How many shards share a task."""
    return 1 if shards <= ALONE else -(-shards // TASKS)


class Tally:
    """Shows now and then how many shards are there. Not a dataclass: Prefect would walk through such a parameter."""

    def __init__(self, run: Run, name: str, total: int):
        self._run, self._name, self._total = run, name, total
        self._done = self._cached = self._shown = 0
        self._lock = threading.Lock()

    def add(self, cached: bool) -> None:
        with self._lock:
            self._done += 1
            self._cached += cached
            if self._shown == (part := REPORTS * self._done // self._total):
                return
            self._shown = part
            line = f"        {self._name}: {self._done:,} of {self._total:,} shards, {self._cached:,} of them cached"
        self._run.progress.step(line, None)


def submit(run: Run, every: Step, model: Any, shards: list[tuple[Step, Ref]], count: int) -> list[Any]:
    """Futures of lists of references, in the order of the shards (each with its prompts). `every`: the step that stands
    for all of them, `generate[iter 0]`; `count`: flow runs that they are dealt out to on a work pool."""
    size = per_task(len(shards))
    tally = Tally(run, every.title, len(shards))
    run.titles += [step.title for step, _ in shards]
    parts = [shards[start : start + size] for start in range(0, len(shards), size)]
    batches = [Batch([shard for part in parts[i::count] for shard in part]) for i in range(count)]
    titled: Any = lambda parameters: parameters["step"].title  # noqa: E731
    name = every.module.NAME
    kept: Any = {"retries": 0, "retry_delay_seconds": 0, "persist_result": False, "cache_policy": NO_CACHE}
    together_task = task(name=name, task_run_name=titled, **kept)(_perform_all)
    futures: list[Any] = []
    for i, part in enumerate(parts):
        steps, prompts = zip(*part, strict=True)
        first = i * size + 1
        together = replace(every, label=f"{every.label}, shards {first}-{first + len(part) - 1}/{len(shards)}")
        run.grouped |= dict.fromkeys((step.title for step in steps), together.title)
        inputs = {"model": model, "prompts": list(prompts)}
        futures.append(together_task.submit(run, together, inputs, steps, batches[i % count], tally))
    run.futures += futures
    return futures


def _perform_all(run: Run, step: Step, inputs: dict, steps: Sequence[Step], batch: Batch, tally: Tally) -> Any:
    """The shards of one task in turn. A process that died is tried again here: as a task, all of them would be."""
    refs, cached_shards = [], 0
    for own, prompts in zip(steps, inputs["prompts"], strict=True):
        keyed = KeyedStep(own, {**inputs, "prompts": prompts}, run.takes)
        for attempt in range(RETRIES + 1):
            try:
                ref, cached = perform(run, keyed, batch, last=attempt == RETRIES)
                break
            except ChildDied as error:
                if attempt == RETRIES:
                    raise
                get_run_logger().warning("%s: tried again: %s", own.title, error)
        refs.append(ref)
        cached_shards += cached
        tally.add(cached)
    get_run_logger().info("%s: %d of %d were cached", step.title, cached_shards, len(refs))
    return Completed(name="Cached", data=refs) if cached_shards == len(refs) else refs
