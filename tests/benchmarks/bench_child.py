"""One training run of the benchmark in a process of its own: what to run comes as JSON on stdin, a line of JSON goes
out on stdout for every optimiser step, and one more with the result."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

import torch

from tests.benchmarks import our_way, reference_way, trl_way
from tests.benchmarks.bench_work import MemoryWatch, Watch, Work

WAYS: dict[str, Callable[[Work, Watch], list[float]]] = {
    "reference": reference_way.run,
    "trl": trl_way.run,
    "ours": our_way.run,
}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not the protocol
    request = json.load(sys.stdin)
    work, run = Work(**request["work"]), WAYS[request["way"]]
    torch.set_num_threads(work.threads)

    def tick() -> None:
        _send(out, {"tick": 1})

    _send(out, {"result": measure_memory(run, work, tick) if request["memory"] else measure_time(run, work, tick)})


def measure_time(run: Callable[[Work, Watch], list[float]], work: Work, tick: Callable[[], None]) -> dict[str, Any]:
    """Seconds of each part and in all, on both clocks, and the loss of each step; after a warm-up that is not timed."""
    run(work.warm_up(), Watch())
    watch = Watch(tick)
    losses = run(work, watch)
    return {"parts": watch.parts, "wall": watch.total("wall"), "cpu": watch.total("cpu"), "losses": losses}


def measure_memory(run: Callable[[Work, Watch], list[float]], work: Work, tick: Callable[[], None]) -> dict[str, Any]:
    """MB (10^6 bytes): the weights, and the peaks of the first two steps above all weights and above the policy's.

    The first step has gradients from its backward pass on and the optimiser's state at its end; the second has the
    state from the start.
    """
    watch = MemoryWatch(tick)
    run(work, watch)
    first, second = watch.peaks[0], max(watch.peaks)
    policy, all_weights = watch.bases[0], watch.bases[-1]
    if watch.models == 1:
        policy = all_weights  # between the two, TRL's trainer was built and its libraries were loaded
    figures = {
        "first_step_above_weights": first - all_weights,
        "any_step_above_weights": second - all_weights,
        "first_step_above_policy": first - policy,
        "any_step_above_policy": second - policy,
        "in_memory_before_the_first_step": all_weights,
    }
    return {"models": watch.models, **{name: value / 1e6 for name, value in figures.items()}}


def _send(out: TextIO, line: dict[str, Any]) -> None:
    print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
