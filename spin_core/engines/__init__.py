"""What samples answers: the `Engine` protocol, its requests and answers as token ids, and the engines.

An engine is a module with the members of `Engine` and one line of `table.ENGINES`. It runs in the stage's child
process, under the interpreter that has it; at its top it imports nothing heavy, as plans and `doctor` read it too.
lm-evaluation-harness is in `harness/`. Not here: prompts as text and what becomes of an answer (stages.generate).
May import modeling, runtime, sources, data, config and job.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from spin_core.config.runtime import Runtime
from spin_core.job import Job


@dataclass(frozen=True)
class Request:
    """One prompt to answer. `seed` decides every draw for this row, whatever batch or shard it is in."""

    id: str
    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class Sampling:
    """How every request of a stage is answered. `temperature` 0 is greedy; `top_k` 0 cuts nothing off.

    Generation ends at any of `stop_ids` (not before `min_new_tokens` tokens), at the token that completes one of the
    strings `stop` in the decoded answer (not together with `min_new_tokens`), or after `max_new_tokens`. No prompt of
    the run has more than `max_prompt` tokens (0: not known).
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: frozenset[int]
    pad_id: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    max_prompt: int = 0
    top_k: int = 0


@dataclass(frozen=True)
class Answer:
    """`token_ids` as sampled, the stop token (or the tokens of a stop string) included. `finish`: `stop`, or `length`
    when cut. `logps`: with `Sampling.logprobs`, log p of each token under the model itself, in nats: at temperature 1,
    before nucleus and minimum length."""

    id: str
    token_ids: list[int]
    finish: str
    logps: list[float] | None = None


@dataclass(frozen=True)
class Footprint:
    """What an engine takes of a machine under a profile's `runtime:`, for the cost sheet."""

    processes: int
    """Processes side by side, each with a model and rows of its own."""
    in_flight: int
    """Rows at work at once in each."""
    gpus: int = 1
    """GPUs that share one process's model."""
    gpu_share: float = 0.0
    """Part of each GPU's memory that it takes whatever the model; 0: only what its tensors need."""


class Engine(Protocol):
    """One way to sample: what the module of an engine has."""

    PACKAGES: tuple[str, ...]
    """Whose versions stand in records, the engine's own first."""
    LAYER_SECONDS: float
    """Of one layer in one sampling step, however few rows: Python and kernel launches."""
    SPREADS: bool
    """Whether several GPUs can share one model of it (`runtime.tensor_parallel`)."""
    KEPT: str
    """The name of its module where its process may be kept for the next model, and rests meanwhile (`rest() -> bool`,
    whether it may be kept so); else empty."""

    def sample(
        self, model_path: Path, requests: Sequence[Request], sampling: Sampling, job: Job, label: str
    ) -> list[Answer]:
        """One answer for each request, in the order of the requests, shown on a bar called `label`. Sets `job.engine`
        to its `versions`, and in `job.figures` tokens_per_second, in_flight_mean and load_seconds.

        Raises BadInput for a model, prompt or setting that it does not take, StageFailed where memory ran out,
        ChildDied where another process may have more luck.
        """

    def interpreter(self, runtime: Runtime) -> str:
        """Path of the interpreter that has it; empty: the one that calls. Raises BadInput where that is not there."""

    def process(self, max_tokens: int, has_stop_strings: bool) -> str:
        """With an interpreter of its own: names the kind of process that can serve sequences of `max_tokens`. Steps of
        one kind and one model share a process."""

    def check(self, runtime: Runtime) -> None:
        """Raise BadInput where this machine cannot run it under these settings."""

    def footprint(self, runtime: Runtime) -> Footprint:
        """Its processes, rows in flight and GPUs."""

    def doctor(self) -> tuple[str, str] | None:
        """(`ok`, `missing` or `-` for what is not needed, what is there or what to do) for `spinloop doctor`; None
        where it comes with spinloop's own packages."""


def versions(packages: Sequence[str]) -> str:
    """`vllm 0.32.0, torch 2.11.0` of packages that this process has imported."""
    return ", ".join(f"{name} {sys.modules[name].__version__}" for name in packages)
