"""The training loop of finetune and sft, on accelerate: exact global batches, resumable (torch module).

What it is *not*: no loss of its own (an `Objective` has it), no evaluation, no second model in memory. How the weights
are spread over processes is the `Strategy`'s: all in each (DDP), or sharded (ZeRO, FSDP2).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from transformers import PreTrainedModel

from spin_core.config.choices import Optimizer, Precision
from spin_core.config.finetune import Finetune, Sft
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Bar, Job
from spin_core.modeling.collate import Tokens
from spin_core.modeling.loading import load_model, pick_device, save_model, source_dtype, use_liger
from spin_core.modeling.logprobs import Policy, micro_batches
from spin_core.runtime import process_group
from spin_core.training.ddp import Ddp
from spin_core.training.strategy import Metrics, Strategy


@dataclass(frozen=True)
class TrainingPlan:
    """How long, how fast, in which order: what finetune and sft have in common. Epochs may be fractions."""

    lr: float
    optimizer: Optimizer
    weight_decay: float
    warmup_ratio: float
    schedule_epochs: float
    stop_epoch: float
    global_batch: int
    max_grad_norm: float
    seed: int
    examples: int

    @classmethod
    def of(cls, part: Finetune | Sft, seed: int, examples: int) -> TrainingPlan:
        """As the section of a profile has it."""
        epochs, stop = (part.epochs, 0.0) if isinstance(part, Sft) else (part.schedule_epochs, part.stop_epoch)
        return cls(
            lr=part.lr, optimizer=part.optimizer, weight_decay=part.weight_decay, warmup_ratio=part.warmup_ratio,
            schedule_epochs=epochs, stop_epoch=stop, global_batch=part.global_batch,
            max_grad_norm=part.max_grad_norm, seed=seed, examples=examples,
        )  # fmt: skip

    @property
    def steps_per_epoch(self) -> int:
        """The last step of an epoch may have fewer examples than `global_batch`."""
        return math.ceil(self.examples / self.global_batch)

    @property
    def schedule_steps(self) -> int:
        return math.ceil(self.schedule_epochs * self.steps_per_epoch)

    @property
    def stop_step(self) -> int:
        return math.ceil(self.stop_epoch * self.steps_per_epoch) if self.stop_epoch else self.schedule_steps

    def lr_at(self, step: int) -> float:
        """Learning rate of optimiser step `step` (from 0): transformers' `linear`, whose warm-up begins at 0."""
        warmup = math.ceil(self.warmup_ratio * self.schedule_steps)
        if step < warmup:
            return self.lr * (step / warmup)
        return self.lr * max(0.0, (self.schedule_steps - step) / max(1, self.schedule_steps - warmup))

    def examples_of(self, step: int) -> np.ndarray:
        """Indices of the examples in step `step`: a slice of the epoch's permutation, drawn from (seed, epoch)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.examples)
        return order[place * self.global_batch :][: self.global_batch]


class Objective(Protocol):
    """What is learned: examples by index, a loss to be summed over them, and figures beside it."""

    name: str
    """What one example is called in metrics and figures (`pairs`, `rows`)."""

    def group(self, index: int) -> Sequence[Tokens]:
        """The example's token sequences, which share a prompt."""

    def size(self, index: int) -> int:
        """How much the example counts in the mean over the global batch (1 a pair; its answer tokens for a row)."""

    def sums(self, logps: Tensor, indices: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the examples, each times its weight (1, or 0 for filling up), summed, with graph; and figures
        likewise.

        `logps` [S]: of the examples' sequences, in order. Figures are sums over examples (not over sizes), detached.
        """


@dataclass
class Learner:
    """`step` is one optimiser step over a global batch of any size."""

    strategy: Strategy
    micro_tokens: int

    def step(self, objective: Objective, batch: np.ndarray, lr: float) -> Metrics:
        """Moves the weights by the mean loss over `batch`, divided by its true size; returns that mean and the figures.

        The result does not depend on `micro_tokens` or on the number of processes but for rounding. Raises StageFailed,
        before the weights are touched, when loss or gradient is not finite.
        """
        policy, processes = self.strategy.policy, process_group.world()
        size = sum(objective.size(int(i)) for i in batch)
        shares = _shares(policy, objective, batch, self.micro_tokens, processes)[process_group.rank()]
        totals: dict[str, Tensor] = {}
        with policy.autocast():
            for number, (indices, weights) in enumerate(shares, 1):
                last = number == len(shares)
                logps = self.strategy.logps(policy.batch([objective.group(i) for i in indices]), last)
                loss, figures = objective.sums(logps, indices, weights.to(logps.device))
                # Every strategy averages gradients over processes; the sum is wanted.
                self.strategy.backward(loss * (processes / size), last)
                for name, value in {"loss": loss, **figures}.items():
                    totals[name] = totals.get(name, 0) + value.detach().double()
        sums = dict(zip(totals, torch.stack(list(totals.values())).tolist(), strict=True))
        everywhere = process_group.gather(sums)
        metrics = {
            name: sum(one[name] for one in everywhere) / (size if name == "loss" else len(batch)) for name in sums
        }
        if not math.isfinite(metrics["loss"]):
            raise StageFailed(f"loss is {metrics['loss']}")
        metrics["grad_norm"] = self.strategy.step(lr)
        return metrics


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


def make_learner(policy: Policy, plan: TrainingPlan, job: Job, accelerator: Accelerator) -> Learner:
    """The policy (float32 weights, train mode) and its optimiser, on the accelerator's device."""
    model, compute = policy.model, job.runtime.compute
    if job.runtime.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if compute.sharding == "fsdp2":
        model.reshard()  # type: ignore[operator]  # a pass without gradients leaves the outermost weights gathered
    kinds = {"rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = kinds[plan.optimizer](trained, lr=plan.lr, weight_decay=plan.weight_decay)
    strategy: Strategy
    if compute.sharding.startswith("zero"):
        from spin_core.training.zero import Zero

        strategy = Zero(policy, optimizer, compute, plan.max_grad_norm)
    elif compute.sharding == "fsdp2":
        from spin_core.training.fsdp import Fsdp2

        strategy = Fsdp2(policy, optimizer, plan.max_grad_norm)
    else:
        strategy = Ddp(policy, optimizer, accelerator, plan.max_grad_norm)
    return Learner(strategy, job.runtime.micro_tokens)


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
    model: PreTrainedModel, pad_id: int, precision: Precision, objective: Objective, plan: TrainingPlan, job: Job,
    label: str, watch: Callable[[list[Metrics]], None] = lambda history: None,
) -> tuple[list[Metrics], int, Strategy]:  # fmt: skip
    """Trains the weights of `model` that ask for gradients, in place, to `plan.stop_step`.

    `watch` is called after every step with the metrics of all steps so far, those before a resume among them.
    Returns the metrics of every step, the same in all processes, the step of the checkpoint that it went on from (0:
    none), and what holds the trained weights.

    Resumes from the newest sound checkpoint in `job.scratch`. On CPU a run that was killed and resumed ends in the same
    bytes as one that was not. Raises BadInput for no examples or a schedule that never leaves 0, StageFailed (naming
    the step) when loss or gradient is not finite.
    """
    if plan.examples == 0:
        raise BadInput(
            f"{label}: there are no {objective.name} to train on; look at the dataset's train split and its rejects"
        )
    if not any(plan.lr_at(step) > 0 for step in range(plan.stop_step)):
        raise BadInput(
            f"{label}: its {plan.stop_step} optimiser step(s) all have the warm-up's learning rate 0, so nothing would "
            "be trained; set warmup_ratio to 0, lower global_batch or raise the epochs"
        )
    accelerator = make_accelerator(job)
    model.to(accelerator.device)
    if job.runtime.liger:
        use_liger(model)
    longest = max(len(tokens) for i in range(plan.examples) for tokens in objective.group(i))
    policy = Policy(model, pad_id, precision, None, None)
    if job.runtime.compute.sharding == "zero3":  # its weights can be read once DeepSpeed has the policy
        learner = make_learner(policy, plan, job, accelerator)
        policy.settle(longest, job.runtime, job.note)
    else:
        policy.settle(longest, job.runtime, job.note)
        learner = make_learner(policy, plan, job, accelerator)
    history = learner.strategy.restore(job.scratch)
    resumed_at = len(history)
    if resumed_at > plan.stop_step:
        raise StageFailed(
            f"{job.scratch}: a checkpoint of {resumed_at} steps cannot be of this run of {plan.stop_step}; delete it"
        )
    with job.progress(label, plan.stop_step, "steps") as bar:
        bar.advance(len(history))
        for step in range(len(history), plan.stop_step):
            history.append(_step(learner, objective, plan, step, bar))
            watch(history)
            every, done = job.runtime.checkpoint_every, len(history)
            if every and done % every == 0 and done < plan.stop_step:
                learner.strategy.save(job.scratch, history)
    return history, resumed_at, learner.strategy


def write_results(model: PreTrainedModel, history: list[Metrics], source: Path, out: Path, strategy: Strategy) -> None:
    """The model directory and `metrics.jsonl`, one line per optimiser step; of several processes the first writes, the
    others give it their shards."""
    weights = strategy.full_weights(source_dtype(source))
    if process_group.rank() == 0:
        save_model(model, source, out, weights)
        (out / "metrics.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in history))


def _step(learner: Learner, objective: Objective, plan: TrainingPlan, step: int, bar: Bar) -> Metrics:
    batch, lr, begin = plan.examples_of(step), plan.lr_at(step), time.monotonic()
    try:
        metrics = learner.step(objective, batch, lr)
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
    rate = len(batch) / max(time.monotonic() - begin, 1e-9)
    shown = {name.rpartition("/")[2]: metrics[name] for name in ("loss", "rewards/margins") if name in metrics}
    bar.advance(1, **shown, **{f"{objective.name}/s": rate})
    return {
        "step": step + 1, "epoch": (step + 1) / plan.steps_per_epoch, "lr": lr, objective.name: len(batch), **metrics,
    }  # fmt: skip


def _shares(
    policy: Policy, objective: Objective, batch: np.ndarray, budget: int, processes: int
) -> list[list[tuple[list[int], Tensor]]]:
    """The micro-batches of a global batch for every process: (indices, weights), equally many for each.

    Sorted by length, longest first: within one optimiser step order means nothing, and like with like needs little
    padding. Each example goes to the process that has the fewest tokens so far. Where a process has nothing left, an
    example of weight 0 keeps it in step with the others.
    """
    costs = {int(i): policy.cost(objective.group(int(i))) for i in batch}
    order = sorted(costs, key=lambda i: (-costs[i], i))
    owned = [[order[n] for n in hand] for hand in process_group.deal([costs[i] for i in order], processes)]
    cuts = [micro_batches([costs[i] for i in own], budget, policy.packed) for own in owned]
    rounds = max(map(len, cuts))
    shares = []
    for own, cut in zip(owned, cuts, strict=True):
        share = [([own[n] for n in part], torch.ones(len(part))) for part in cut]
        shares.append(share + [([order[-1]], torch.zeros(1))] * (rounds - len(share)))
    return shares
