"""The training loop of finetune and sft, on accelerate: exact global batches, resumable (torch module).

What it is *not*: no loss of its own (an `Objective` has it), no optimiser step (a `Strategy` has it), no evaluation, no
second model in memory.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from transformers import PreTrainedModel

from spin_core.config.finetune import Finetune
from spin_core.config.sft import Sft
from spin_core.errors import BadInput, StageFailed, Stopped
from spin_core.job import Bar, Job
from spin_core.modeling.collate import longest_of
from spin_core.modeling.loading import load_model, pick_device, save_model, source_dtype, use_liger
from spin_core.modeling.logprobs import Policy
from spin_core.runtime import process_group
from spin_core.training.checkpoint import Metrics
from spin_core.training.objectives import Objective
from spin_core.training.strategy import Strategy


@dataclass(frozen=True)
class TrainingPlan:
    """How long, how fast, in which order, as the section of a profile says it. Epochs may be fractions."""

    part: Finetune | Sft
    seed: int
    examples: int
    counts: np.ndarray | None = None
    """Of each group of examples that are drawn together, how many there are, int64; None: each is drawn alone."""

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may have fewer examples than `global_batch`."""
        return math.ceil(self.examples / self.part.global_batch)

    @property
    def schedule_steps(self) -> int:
        epochs = self.part.epochs if isinstance(self.part, Sft) else self.part.schedule_epochs
        return math.ceil(epochs * self.steps_per_epoch)

    @property
    def stop_step(self) -> int:
        stop = 0.0 if isinstance(self.part, Sft) else self.part.stop_epoch
        return math.ceil(stop * self.steps_per_epoch) if stop else self.schedule_steps

    def lr_at(self, step: int) -> float:
        """Learning rate of optimiser step `step` (from 0): transformers' `linear`, whose warm-up begins at 0."""
        warmup = math.ceil(self.part.warmup_ratio * self.schedule_steps)
        if step < warmup:
            return self.part.lr * (step / warmup)
        return self.part.lr * max(0.0, (self.schedule_steps - step) / max(1, self.schedule_steps - warmup))

    def examples_of(self, step: int) -> np.ndarray:
        """Indices of the examples (with `counts`: of the groups) in step `step`: a slice of the epoch's permutation,
        drawn from (seed, epoch).

        A group is in one step whole. Where one does not fit, the next step begins with the group whose first example is
        nearest to a multiple of `global_batch`: a step has up to half a group more or less on either side, none is
        empty, and an epoch has as many steps as with single examples. Each step's loss is the mean over what it has.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        counts = self.counts
        if counts is None:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.examples)
            return order[place * self.part.global_batch :][: self.part.global_batch]
        order = np.random.default_rng([self.seed, epoch]).permutation(len(counts))
        begins = self._begins(counts[order])
        return order[begins[place] : begins[place + 1]]

    def _begins(self, counts: np.ndarray) -> np.ndarray:
        """Places of the first group of each step of an epoch whose groups have so many examples, and the end."""
        steps = np.arange(self.steps_per_epoch)
        ends = counts.cumsum()
        first, wanted = ends - counts, steps * self.part.global_batch
        after = np.searchsorted(first, wanted).clip(max=len(first) - 1)
        before = (after - 1).clip(min=0)
        nearest = np.where(wanted - first[before] < first[after] - wanted, before, after)
        # As no group is larger than a step, only the last two can be nearest to the same group: one is kept for each.
        return np.append(np.minimum(nearest, len(first) - len(steps) + steps), len(first))

    def size_of(self, batch: np.ndarray) -> int:
        """How many examples a step of these indices has."""
        return len(batch) if self.counts is None else int(self.counts[batch].sum())


def load_trainable(source: Path, job: Job) -> PreTrainedModel:
    """The model in `source`, of which all weights ask for gradients; where it is sharded, this process's shard."""
    compute = job.runtime.compute
    if compute.sharding == "zero3":
        from spin_core.training import zero

        return zero.load(source, compute, make_accelerator(job).device)
    if compute.sharding == "fsdp2":
        from spin_core.modeling import sharded_loading

        return sharded_loading.load(source, make_accelerator(job).device, train=True)
    return load_model(source, "cpu", train=True)  # accelerate knows which GPU is this process's


def make_strategy(policy: Policy, plan: TrainingPlan, job: Job, accelerator: Accelerator) -> Strategy:
    """How the policy (float32 weights, train mode, on the accelerator's device) is trained, with its optimiser."""
    model, compute = policy.model, job.runtime.compute
    if job.runtime.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if compute.sharding == "fsdp2":
        model.reshard()  # type: ignore[operator]  # a pass without gradients leaves the outermost weights gathered
    kinds = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = kinds[plan.part.optimizer](trained, lr=plan.part.lr, weight_decay=plan.part.weight_decay)
    max_norm, micro_tokens = plan.part.max_grad_norm, job.runtime.micro_tokens
    if compute.sharding.startswith("zero"):
        from spin_core.training import zero

        return zero.Zero(policy, *zero.wrap(policy, optimizer, compute, max_norm), max_norm, micro_tokens, True)
    if compute.sharding == "fsdp2":
        return Strategy(policy, policy, optimizer, max_norm, micro_tokens, sharded=True)
    if accelerator.num_processes == 1:
        # Nothing but `backward` looks at the output layer's gradient: it may be added in place.
        policy.head = policy.head and replace(policy.head, in_place=True)
    return Strategy(policy, accelerator.prepare_model(policy), optimizer, max_norm, micro_tokens, sharded=False)


def make_accelerator(job: Job) -> Accelerator:
    """accelerate on the runtime's device; one process, or several of `accelerate launch`. Raises StageFailed under a
    launcher's own DeepSpeed or FSDP: `runtime.compute` says what is sharded."""
    device = pick_device(job.runtime)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    # bfloat16 is the policy's own autocast, the same for scoring and training: a launcher's must not add to it.
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    kind = accelerator.distributed_type
    if kind not in (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU):
        raise StageFailed(
            f"training under accelerate's {kind.value} is not supported; launch with plain multi-GPU (DDP) and set "
            "runtime.compute.sharding"
        )
    return accelerator


def train(
    model: PreTrainedModel, pad_id: int, objective: Objective, plan: TrainingPlan, job: Job, label: str,
    watch: Callable[[list[Metrics]], None] = lambda history: None,
) -> tuple[list[Metrics], int, Strategy]:  # fmt: skip
    """Trains the weights of `model` that ask for gradients, in place, to `plan.stop_step`.

    `watch` is called after every step with the metrics of all steps so far, those before a resume among them.
    Returns the metrics of every step, the same in all processes, the step of the checkpoint that it went on from (0:
    none), and what holds the trained weights.

    Resumes from the newest sound checkpoint in `job.scratch`. On CPU a run that was killed and resumed ends in the same
    bytes as one that was not. Raises BadInput for no examples or a schedule that never leaves 0, StageFailed (naming
    the step) when loss or gradient is not finite, Stopped after a checkpoint where `job.ending` is set.
    """
    _check(plan, objective, label)
    accelerator = make_accelerator(job)
    model.to(accelerator.device)
    if job.runtime.liger:
        use_liger(model)
    longest = longest_of(objective.examples)
    policy = Policy(model, pad_id, plan.part.precision)
    if job.runtime.compute.sharding == "zero3":  # its weights can be read once DeepSpeed has the policy
        strategy = make_strategy(policy, plan, job, accelerator)
        policy.settle(longest, job.runtime, job.note)
    else:
        policy.settle(longest, job.runtime, job.note)
        strategy = make_strategy(policy, plan, job, accelerator)
    history = strategy.restore(job.scratch)
    resumed_at = len(history)
    if resumed_at > plan.stop_step:
        raise StageFailed(
            f"{job.scratch}: a checkpoint of {resumed_at} steps cannot be of this run of {plan.stop_step}; delete it"
        )
    for line in history:  # the run that was to send them on may have been killed before it did
        job.metrics(line)
    with job.progress(label, plan.stop_step, "steps") as bar:
        bar.advance(len(history))
        for step in range(len(history), plan.stop_step):
            history.append(_step(strategy, objective, plan, step, bar))
            job.metrics(history[-1])
            watch(history)
            every, done = job.runtime.checkpoint_every, len(history)
            if done == plan.stop_step:
                break
            asked = any(process_group.gather(job.ending.is_set()))
            if asked or (every and done % every == 0):
                strategy.save(job.scratch, history)
            if asked:
                process_group.gather(None)  # the first process that ends ends all: each has written its part
                raise Stopped(
                    f"{label}: ended by SIGTERM after step {done} of {plan.stop_step}; its checkpoint is written, and "
                    "the same command goes on from there."
                )
    return history, resumed_at, strategy


def _check(plan: TrainingPlan, objective: Objective, label: str) -> None:
    """Raises BadInput for a training that would move nothing, or whose groups no step can have."""
    if plan.examples == 0:
        raise BadInput(
            f"{label}: there are no {objective.name} to train on; look at the dataset's train split and its rejects"
        )
    if not any(plan.lr_at(step) > 0 for step in range(plan.stop_step)):
        raise BadInput(
            f"{label}: its {plan.stop_step} optimiser step(s) all have the warm-up's learning rate 0, so nothing would "
            "be trained; set warmup_ratio to 0, lower global_batch or raise the epochs"
        )
    if plan.counts is not None and (most := int(plan.counts.max())) > plan.part.global_batch:
        raise BadInput(
            f"{label}: a prompt has {most} {objective.name}, which one step of global_batch {plan.part.global_batch} "
            f"cannot have together; raise global_batch to {most} at least, or set order: pairs"
        )


def write_results(model: PreTrainedModel, history: list[Metrics], source: Path, out: Path, strategy: Strategy) -> None:
    """The model directory and `metrics.jsonl`, one line per optimiser step; of several processes the first writes, the
    others give it their shards."""
    weights = strategy.full_weights(source_dtype(source))
    if process_group.rank() == 0:
        save_model(model, source, out, weights)
        (out / "metrics.jsonl").write_text(
            "".join(json.dumps(line, sort_keys=True) + "\n" for line in history), encoding="utf-8"
        )


def _step(strategy: Strategy, objective: Objective, plan: TrainingPlan, step: int, bar: Bar) -> Metrics:
    batch, lr, begin = plan.examples_of(step), plan.lr_at(step), time.monotonic()
    try:
        metrics = strategy.step(objective, batch, lr)
    except StageFailed as error:
        raise StageFailed(
            f"{bar.label}: step {step + 1} of {plan.stop_step}: {error}; lower lr or set max_grad_norm, "
            "and look for broken rows and weights"
        ) from None
    except torch.OutOfMemoryError as error:
        raise StageFailed(
            f"{bar.label}: step {step + 1} of {plan.stop_step} ran out of GPU memory; lower runtime.micro_tokens or "
            "turn on runtime.gradient_checkpointing (both leave the result as it is)"
        ) from error
    size = plan.size_of(batch)
    rate = size / max(time.monotonic() - begin, 1e-9)
    shown = {name.rpartition("/")[2]: metrics[name] for name in ("loss", "rewards/margins") if name in metrics}
    bar.advance(1, **shown, **{f"{objective.name}/s": rate})
    return {
        "step": step + 1, "epoch": (step + 1) / plan.steps_per_epoch, "lr": lr, objective.name: size, **metrics,
    }  # fmt: skip
