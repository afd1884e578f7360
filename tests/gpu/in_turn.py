"""Ways of training in turn, and the cells of their row: what `fast` measures.

Figures are of tests/benchmarks' ways as they are; what is not here: which model, which pairs, which ways.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from spin_core.errors import one_line
from spin_core.estimate import work as operations
from spin_core.estimate.architecture import Architecture
from spin_core.estimate.needs import GIB
from tests.benchmarks.bench_work import Watch, Work, memory, reset_peak, synchronize
from tests.gpu import sizes
from tests.gpu.proof import NOT_REACHED, Figures, Proof

Way = Callable[[Work, Watch], list[float]]
AIM, FROM = 0.45, 3e9
"""Of the MFU, for models of so many weights."""
ROUNDS = 3
COMPILING = 40.0
"""Seconds that must be left for flex_attention, which is compiled at its first use."""
EPOCHS = 2
"""Of an iteration: how often a pair is trained on for one time that it is scored."""


@dataclass
class Steps(Watch):
    """When each optimiser step ended, and how long our scoring took once it knew how to pack."""

    ends: list[float] = field(default_factory=list)
    opened: float = 0.0
    scored: float = 0.0

    def event(self, event: dict) -> None:
        super().event(event)
        if event.get("label") == "score":
            self.opened = self.opened or time.perf_counter()
            self.scored = time.perf_counter() - self.opened

    def step(self) -> None:
        synchronize()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of each step but the first."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


@dataclass
class Measured:
    """What a way did. `scoring`: seconds of all pairs, in each run."""

    peak: int
    steps: list[float] = field(default_factory=list)
    scoring: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def free(proof: Proof) -> None:
    """What nobody holds any more; on a CPU that is not worth the third of a second that it takes."""
    if proof.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def in_turn(
    proof: Proof, work: Work, ways: dict[str, Way], seconds: float
) -> tuple[dict[str, Measured], Figures]:  # fmt: skip
    """What each way did, and why those that are missing did nothing: in `seconds`, though the first has its turn in
    any case, and only it may end the check by failing (tests/gpu/correct.py is what judges kernels)."""
    until = time.monotonic() + min(seconds, proof.left())
    results: dict[str, Measured] = {}
    without: Figures = {}
    first = next(iter(ways))

    def ran(name: str, on: Work, watch: Watch) -> list[float] | None:
        """Its losses; None where it failed, or did not do what it is called for."""
        try:
            losses = ways[name](on, watch)
        except Exception as error:
            if name == first:
                raise
            without[name] = f"failed: {one_line(error, 120, kind=True)}"
            return None
        if watch.notes:
            assert name != first, watch.notes[0]
            without[name] = watch.notes[0]
            return None
        return losses

    for name in ways:
        if results and time.monotonic() + (COMPILING if "flex" in name else 0) > until:
            without[name] = NOT_REACHED
            continue
        free(proof)
        reset_peak()
        if ran(name, replace(work, rows=work.rows[: work.batch]), Watch()) is not None:
            results[name] = Measured(memory("VmHWM"))
    for _ in range(1 if proof.tiny else ROUNDS):
        began = time.monotonic()
        for name in list(results):
            watch = Steps()
            if (losses := ran(name, work, watch)) is None:
                del results[name]
                continue
            results[name].steps += watch.seconds
            if "score" in watch.parts:
                results[name].scoring.append(watch.scored or watch.parts["score"]["wall"])
            results[name].losses = results[name].losses or losses
        if time.monotonic() + (time.monotonic() - began) > until:
            break
    return results, without


def cells(proof: Proof, shape: Architecture, rank: int, work: Work, results: dict[str, Measured]) -> Figures:
    """The table's cells."""
    gpu, steps = sizes.card(proof), len(work.rows) / work.batch
    useful = operations.training_flops(shape, sizes.groups(work.rows), False, bool(rank)) / steps
    figures: Figures = {}
    pairs, best = dict[str, float](), 0.0
    for way, one in results.items():
        step = statistics.median(one.steps)
        scoring = statistics.median(one.scoring) / len(work.rows) if one.scoring else 0.0
        pairs[way] = 1 / (step / work.batch + scoring / EPOCHS)
        figures[f"{way}, tokens/s"] = work.useful_tokens / steps / step
        if gpu.bfloat16:
            share = useful / step / (gpu.bfloat16 * 1e12)
            figures[f"{way}, MFU"] = share
            best = max(best, share) if way.startswith("ours") else best
        figures[f"{way}, pairs/s"] = pairs[way]
        figures[f"{way}, GiB"] = one.peak / GIB
    for other in ("reference", "TRL"):
        if other in pairs:
            figures[f"ours : {other}, pairs/s"] = max(n for way, n in pairs.items() if way[:4] == "ours") / pairs[other]
    if not gpu.bfloat16:
        figures["MFU"] = f"left out: the peak of {gpu.name} is not in spin_core/estimate/gpus.yaml"
    elif shape.weights >= FROM:
        figures[f"aim of {AIM:.0%} MFU"] = "met" if best >= AIM else "MISSED"
    return figures
