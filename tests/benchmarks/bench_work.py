"""What every way of training is given (`Work`) and where it reports its progress (`Watch`, `MemoryWatch`)."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from spin_core.config.choices import Kernel, Precision
from spin_core.config.finetune import Finetune
from spin_core.modeling.collate import Tokens
from spin_core.training.loop import TrainingPlan

Pair = tuple[Tokens, Tokens]


@dataclass(frozen=True)
class Work:
    """One training run: the model on disk, its pairs as token ids, and every setting that the ways share.

    `rows`: per pair the token ids of (prompt, real answer, generated answer). `batch` is pairs per optimiser step,
    `micro` pairs per forward pass of the ways that pad; `micro_tokens` packed tokens per forward pass of ours (0: its
    default), `kernel` the attention of ours. `scored` False leaves the opponent's log-probs at 0 where a way computes
    them beforehand.

    A way's `run` takes a model that is in memory in place of the one in `model`; it is trained as it is.
    """

    model: str
    rows: list[tuple[list[int], list[int], list[int]]]
    pad_id: int
    batch: int
    micro: int
    epochs: int
    lr: float
    precision: Precision
    device: str
    threads: int
    micro_tokens: int = 0
    kernel: Kernel = "sdpa"
    beta: float = 0.1
    max_grad_norm: float = 1.0
    seed: int = 1
    scored: bool = True
    together: list[list[int]] = field(default_factory=list)
    """Numbers of the pairs that have one prompt and real answer: one group in ours, and its pairs are of one step in
    every way; none: each pair alone."""

    @property
    def path(self) -> Path:
        return Path(self.model)

    @property
    def pairs(self) -> list[Pair]:
        """(real, generated) of each pair, sharing their prompt's ids."""
        return [
            (Tokens(np.array(p + r, np.int32), len(p)), Tokens(np.array(p + g, np.int32), len(p)))
            for p, r, g in self.rows
        ]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence (prompt and one answer)."""
        return max(len(p) + max(len(r), len(g)) for p, r, g in self.rows)

    @property
    def useful_tokens(self) -> int:
        """Tokens of all pairs without padding, each prompt once."""
        return sum(len(p) + len(r) + len(g) for p, r, g in self.rows)

    @property
    def grouped_tokens(self) -> int:
        """The same where each group has prompt and real answer once."""
        return sum(
            sum(map(len, self.rows[own[0]][:2])) + sum(len(self.rows[i][2]) for i in own) for own in self.together
        )

    @property
    def labels(self) -> int:
        """Answer tokens of all pairs."""
        return sum(len(r) + len(g) for _, r, g in self.rows)

    @property
    def plan(self) -> TrainingPlan:
        """RMSprop, linear decay to 0 without warm-up; the order of the pairs comes from `seed`."""
        part = Finetune(
            lr=self.lr, warmup_ratio=0.0, schedule_epochs=self.epochs, global_batch=self.batch,
            max_grad_norm=self.max_grad_norm, precision=self.precision,
        )  # fmt: skip
        counts = np.array([len(own) for own in self.together]) if self.together else None
        return TrainingPlan(part, self.seed, len(self.rows), counts)

    def pairs_of(self, step: int) -> list[int]:
        """Numbers of the pairs in optimiser step `step`."""
        chosen = self.plan.examples_of(step).tolist()
        return [pair for group in chosen for pair in self.together[group]] if self.together else chosen

    def warm_up(self) -> Work:
        """One optimiser step on the shortest pair: what a process does only once is then behind it."""
        shortest = min(self.rows, key=lambda row: sum(map(len, row)))
        return replace(self, rows=[shortest], batch=1, micro=1, epochs=1, together=[])


@dataclass
class Watch:
    """Stopwatch of one run: seconds of each part, `wall` and `cpu` (this process's, all threads together)."""

    tick: Callable[[], None] = lambda: None
    parts: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """What ours said, such as that it could not pack."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds what runs inside to part `name`; a GPU's queue is emptied before each reading of the clock."""
        synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        synchronize()
        spent = self.parts.setdefault(name, {"wall": 0.0, "cpu": 0.0})
        spent["wall"] += time.perf_counter() - wall
        spent["cpu"] += time.process_time() - cpu

    def weights(self, *models: torch.nn.Module) -> None:
        """A way calls it with all models that it holds, each time one more is in memory, and before its first step."""

    def step(self) -> None:
        """A way calls it after every optimiser step."""
        self.tick()

    def event(self, event: dict) -> None:
        """What a job of ours sends."""
        self.notes += [event["note"]] if "note" in event else []

    def total(self, clock: str) -> float:
        """Seconds of all parts on `clock`: wall or cpu."""
        return sum(spent[clock] for spent in self.parts.values())


@dataclass
class MemoryWatch(Watch):
    """Also the memory in bytes: `bases` at each call of `weights`, `peaks` since the last of them, after each step."""

    bases: list[int] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    models: int = 0

    def weights(self, *models: torch.nn.Module) -> None:
        for model in models:  # pages of a file that nobody has read yet are not in memory
            for parameter in model.parameters():
                parameter.detach().sum().item()
        self.models = len(models)
        give_back_free_memory()
        self.bases.append(memory("VmRSS"))
        reset_peak()

    def step(self) -> None:
        self.peaks.append(memory("VmHWM"))
        super().step()


def synchronize() -> None:
    """Waits for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory(which: str) -> int:
    """Bytes in use now (VmRSS) or at most since `reset_peak` (VmHWM): of the GPU's allocator, or of this process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() if which == "VmRSS" else torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{which}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not report {which}; leave out --memory on this system")


def reset_peak() -> None:
    """From now on `memory("VmHWM")` counts anew."""
    if torch.cuda.is_available():
        torch.cuda.init()  # a process that has not used the GPU yet has no statistics to reset
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def give_back_free_memory() -> None:
    """Freed memory that the C library keeps for itself would hide later allocations in the base."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's only
    if trim is not None:
        trim(0)
