"""`runtime:` in a profile: how a run uses its machine. Nothing of it enters a key."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from spin_core.config.base import Section
from spin_core.config.choices import Kernel

Tracker = Literal["tensorboard", "mlflow", "trackio", "wandb"]


class Pools(Section):
    """Where a stage that is missing in the store runs: the name of a work pool that has a deployment of it
    (deployments/prefect.yaml), or `here` for the run's own machine. Empty is `spin-gpu` in a run of a deployment, and
    `here` on the command line. Cheap stages (reformat, gather, report) always run here. A stage with a field here
    has a flow in flows/stages.py and a cost estimate."""

    sft: str = Field("", max_length=100, description="Work pool of sft; empty: spin-gpu in a deployment, else here.")
    generate: str = Field("", max_length=100, description="Work pool of generate (as for sft).")
    score: str = Field("", max_length=100, description="Work pool of score (as for sft).")
    finetune: str = Field("", max_length=100, description="Work pool of finetune (as for sft).")
    evaluate: str = Field("", max_length=100, description="Work pool of evaluate (as for sft).")
    harness: str = Field("", max_length=100, description="Work pool of harness (as for sft).")

    def of(self, stage: str, default: str) -> str:
        """The pool of a stage, or `here`; `default` where it is left empty. Stages without a field run here."""
        return getattr(self, stage, "here") or default

    def any_pool(self) -> bool:
        """Whether a stage of a run that the command line starts runs on a work pool."""
        return any(self.of(stage, "here") != "here" for stage in type(self).model_fields)

    def any_here(self, default: str) -> bool:
        """Whether one of the stages runs on the run's own machine."""
        return any(self.of(stage, default) == "here" for stage in type(self).model_fields)


class Compute(Section):
    """How many processes work on one model together, and what of it each one holds: for sft, finetune, score, evaluate
    and generate with the transformers engine. (vLLM has `tensor_parallel`; mixed
    precision is `finetune.precision`, as it changes log-probs.)"""

    processes: int = Field(1, ge=1, le=64, description="Processes on each node, one GPU each (on a CPU: gloo).")
    nodes: int = Field(
        1, ge=1, le=1024, description="Machines; on each but the first runs `spinloop join`, and all see one store."
    )
    sharding: Literal["none", "zero1", "zero2", "zero3", "fsdp2"] = Field(
        "none",
        description="What each process holds a part of only. none: nothing (data parallel); DeepSpeed zero1: optimiser "
        "state, zero2: gradients too, zero3: weights too; fsdp2: all three, by torch alone.",
    )
    offload: Literal["none", "optimizer", "weights"] = Field(
        "none",
        description="What DeepSpeed ZeRO keeps in the host's memory: the optimiser's state, or (zero3) the weights "
        "too.",
    )

    @model_validator(mode="after")
    def _can_be_offloaded(self) -> Compute:
        if self.offload != "none" and not self.sharding.startswith("zero"):
            raise ValueError(f"offload: {self.offload} is DeepSpeed's; set sharding: zero3, or leave it out")
        if self.offload == "weights" and self.sharding != "zero3":
            raise ValueError("offload: weights needs sharding: zero3; or take offload: optimizer")
        return self

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.processes * self.nodes

    @property
    def in_parts(self) -> bool:
        """Whether the model is sharded: no process holds all of it."""
        return self.world > 1 and self.sharding in ("zero3", "fsdp2")


class Runtime(Section):
    """How a run uses its machine. Nothing here enters a cache key: on CPU results differ by float rounding only."""

    device: str = Field("auto", description="auto, cpu, cuda or cuda:N; auto takes a GPU where there is one.")
    threads: int = Field(0, ge=0, description="CPU threads for torch; 0 leaves torch's own choice.")
    workers: int = Field(
        1, ge=1, le=16, description="Stage processes at work at once (generate shards are spread over them)."
    )
    generate_batch: int = Field(32, ge=1, description="Prompts in one generation batch (transformers engine).")
    requests_in_flight: int = Field(128, ge=1, description="Prompts that one vLLM engine works on at once.")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share one vLLM engine; each worker has so many.")
    gpu_memory: float = Field(0.9, gt=0, le=1, description="Part of a GPU's memory that vLLM takes.")
    vllm_kv_gib: int = Field(4, ge=1, description="GiB of memory for vLLM's keys and values on CPU.")
    keep_engine: bool = Field(
        True,
        description="Keep a vLLM engine for the next model of the run, whose weights it then takes in place (checked: "
        "docs/generate.md); asleep on a GPU while other stages compute there. false: a new engine for each model.",
    )
    vllm_python: str = Field(
        "", description="Interpreter that has vLLM; empty: $SPINLOOP_VLLM_PYTHON, else .venv-vllm (`make vllm-env`)."
    )
    harness_batch: int = Field(
        16, ge=1, description="Requests in one pass of a benchmark task (transformers back end; vLLM takes many)."
    )
    score_tokens: int = Field(8192, ge=1, description="Tokens in one scoring pass (one pair or row at least).")
    micro_tokens: int = Field(
        2048,
        ge=1,
        description="Tokens in one training pass (one pair or row at least); a step still sees the global batch.",
    )
    packing: bool = Field(
        True, description="Compute each prompt once for both answers, without padding; off: the padded form."
    )
    attn_implementation: Kernel = Field(
        "sdpa", description="Kernel of packed attention; flash_attention_2 needs flash-attn and bfloat16 on CUDA."
    )
    liger: bool = Field(False, description="Liger kernels for norms, rotary and MLP when training; CUDA only.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third more time."
    )
    checkpoint_every: int = Field(
        100, ge=0, description="Optimiser steps between resumable checkpoints in the store's scratch; 0 keeps none."
    )
    compute: Compute = Field(Compute(), description="Processes that share one model.")
    trackers: list[Tracker] = Field(
        [], description="Where the run's curves are shown: tensorboard, mlflow, trackio, wandb (docs/trackers.md)."
    )
    stage_timeout: int = Field(0, ge=0, description="Seconds after which a stage's process is ended; 0 is no limit.")
    pools: Pools = Field(Pools(), description="Work pools of the stages that need a GPU.")
    generate_runs: int = Field(
        1, ge=1, le=64, description="Pool runs side by side that the shards of one iteration are dealt out to."
    )
    min_new_rows: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="End before training where fewer training rows are new or edited since the last run of this "
        "profile that trained with the same settings (docs/server.md). 0 trains always, as the first run, a sweep, "
        "--redo and a run of one iteration do.",
    )
    approve: bool = Field(
        False, description="Ask a person before every next iteration: the run is suspended and its worker is free."
    )


ROUNDING = (
    "device", "threads", "generate_batch", "requests_in_flight", "tensor_parallel", "harness_batch", "score_tokens",
    "micro_tokens", "packing", "attn_implementation", "liger", "gradient_checkpointing", "compute",
)  # fmt: skip
"""The fields of `Runtime` that float rounding hangs on: the record of what was computed keeps them, for whoever
computes it again; no key does."""
