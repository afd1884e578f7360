"""Plants faults in a kept vLLM engine: run by vLLM's own interpreter (`python -m tests.stages.kept_faults OLD NEW`).

One engine serves OLD. For each fault it is given NEW's weights (and then OLD's again, rightly). Prints one JSON line
{fault, raised, gap…} for each, and at the end what the right reloads answered and took.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from spin_core.config.runtime import Runtime
from spin_core.engines import Answer, Request, Sampling, kept, vllm_engine
from spin_core.engines.checkpoint import Checkpoint
from spin_core.errors import NotReloaded
from spin_core.job import Job

RUNTIME = Runtime(device="cpu", threads=1, vllm_kv_gib=1, requests_in_flight=16)
REQUESTS = [Request(f"row{i}", [5 + i % 7, 9, 12, 30 + i], 1000 + i) for i in range(6)]
LENGTH = 300
"""Of a sequence: a probe's prompt then fills a block of the prefix cache."""
HOW = Sampling(1.0, 1.0, 4, frozenset(), 0, logprobs=True, max_prompt=LENGTH - 4)


def answers(model: Path, digest: str) -> tuple[list[Answer], dict[str, float]]:
    """The model's answers by this process's engine, and its figures."""
    job = Job(Path(), Path(), RUNTIME, {"model": digest})
    return vllm_engine.sample(model, REQUESTS, HOW, job, "answers"), job.figures


def faults(new: Path) -> Iterator[tuple[str, Callable[[], contextlib.AbstractContextManager]]]:
    """Name → what makes the next reload wrong while it is open."""

    def nothing(*args: Any, **kwargs: Any) -> None:
        """A reload that silently does nothing."""

    shared = vllm_engine._engines[vllm_engine.SAMPLING]
    runner = shared.engine.collective_rpc(_runner_class)[0]
    yield "the whole call does nothing", lambda: mock.patch.object(_worker(shared), "load_in_place", nothing)
    yield "vLLM's reload does nothing", lambda: mock.patch.object(runner, "reload_weights", nothing)
    yield (
        "the old weights stay",
        lambda: _both(
            mock.patch.object(_worker(shared), "unload", nothing), mock.patch.object(runner, "reload_weights", nothing)
        ),
    )
    with Checkpoint(new) as checkpoint:
        names = [name for name, _ in checkpoint.tensors()]
    every = Checkpoint.tensors
    for name in names:

        def but_one(self: Checkpoint, left: str = name) -> Iterator:
            return ((one, tensor) for one, tensor in every(self) if one != left)

        yield f"without {name}", lambda f=but_one: mock.patch.object(Checkpoint, "tensors", f)
    old_cache = mock.patch.object(shared.engine, "reset_prefix_cache", lambda: True)
    yield "keys and values of the old model stay", lambda: old_cache


@contextlib.contextmanager
def _both(*patches: contextlib.AbstractContextManager) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def _runner_class(wrapper: Any) -> type:
    return type(wrapper.worker.model_runner)


def _clear(wrapper: Any) -> None:
    for cache in wrapper.worker.model_runner.kv_caches:
        cache.zero_()


def _worker(shared: Any) -> type:
    """The worker's class, into which ours is mixed."""
    return type(shared.engine.collective_rpc(lambda wrapper: wrapper.worker)[0])


def main() -> None:
    """See above."""
    old, new = map(Path, sys.argv[1:3])
    began = time.monotonic(), time.process_time()
    first, _ = answers(old, "old")
    started = time.monotonic() - began[0], time.process_time() - began[1]
    shared = vllm_engine._engines[vllm_engine.SAMPLING]
    for name, planted in faults(new):
        digest, raised = f"new for {name}", ""
        with planted():
            try:
                answers(new, digest)
            except NotReloaded as error:
                raised = str(error)
        print(json.dumps({"fault": name, "raised": raised}), flush=True)
        # In a run its process is ended. Here what the fault left is cleared: keys and values that are NaN stay so.
        shared.engine.abort_request([*shared.rows])
        shared.rows.clear()
        shared.engine.collective_rpc(_clear)
        again, _ = answers(old, f"old after {name}")
        assert again == first, name
    began = time.monotonic(), time.process_time()
    second, figures = answers(new, "new")
    took = time.monotonic() - began[0], time.process_time() - began[1]
    drawn = [(request.prompt, answer.token_ids) for request, answer in zip(REQUESTS, second, strict=True)]
    gaps = [
        kept.distance(kept.own_logps(model, kept.engine_dtype("float32"), drawn), [one.logps or [] for one in second])
        for model in (new, old)
    ]
    done = {
        "first": [one.logps for one in first],
        "second": [one.logps for one in second],
        "reloaded": figures.get("reloaded"),
        "gap": gaps[0],
        "gap_stale": gaps[1],
        "started": started,
        "took": took,
        "compared": [piece.name for piece in shared.pieces],
    }
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
