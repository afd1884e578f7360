"""How the published SPIN trainer computes a step: our own statement of it, held to the golden data by
tests/training/test_reference_way.py.

Policy and frozen opponent are both in memory. Every pair is two padded sequences with the prompt in each, the float32
logits of *all* positions are made and turned into log-probs over the full vocabulary, and the opponent reads every
batch of every epoch again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from spin_core.modeling.collate import Tokens
from spin_core.modeling.loss import spin_loss
from tests.benchmarks.bench_work import Pair, Watch, Work

Padded = dict[str, Tensor]
IGNORE = -100
"""Label of a position that is not part of an answer."""


def pad_reference(pairs: Sequence[tuple[Tokens, Tokens]], pad_id: int) -> Padded:
    """`input_ids`, `attention_mask`, `labels`, int64 [2B, W], real answers first, as the reference's collator and
    concatenation make them.

    Each side is padded with `pad_id` to its own longest; the shorter side then with token 0 to the longer one's width.
    Labels are −100 outside the answers; attention is 0 behind a sequence and at `Tokens.masked`.
    """
    sides = list(zip(*pairs, strict=True))
    widths = [max(len(tokens.ids) for tokens in side) for side in sides]
    rows, width = len(pairs), max(widths)
    ids = np.zeros((2 * rows, width), np.int64)
    mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORE)
    for number, tokens in enumerate([*sides[0], *sides[1]]):
        end = len(tokens.ids)
        ids[number, : widths[number // rows]] = pad_id
        ids[number, :end] = tokens.ids
        mask[number, :end] = 1
        if tokens.masked is not None:
            mask[number, tokens.masked] = 0
        labels[number, tokens.prompt : end] = tokens.ids[tokens.prompt :]
    named = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(values) for name, values in named.items()}


def forward(model: nn.Module, batch: Padded, precision: str = "float32") -> tuple[Tensor, Tensor]:
    """Log p(answer | prompt) [2B] of a padded batch, in nats, and the float32 logits [2B, W, V]."""
    device = batch["input_ids"].device
    half = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    with half:
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    logits = out.logits.float()
    targets = batch["labels"][:, 1:]
    counted = targets != IGNORE
    everything = logits[:, :-1].log_softmax(-1)
    chosen = everything.gather(-1, targets.masked_fill(~counted, 0).unsqueeze(-1)).squeeze(-1)
    return (chosen * counted).sum(-1), logits


def loss_and_metrics(
    policy: nn.Module, opponent: nn.Module, batch: Padded, beta: float, precision: str = "float32"
) -> tuple[Tensor, dict[str, float]]:
    """Mean loss over the batch's pairs, with graph, and the eight figures that the reference logs at every step."""
    logps, logits = forward(policy, batch, precision)
    with torch.no_grad():
        opponent_logps, _ = forward(opponent, batch, precision)
    real, generated = logps.chunk(2)
    losses, real_rewards, generated_rewards = spin_loss(real, generated, *opponent_logps.chunk(2), beta)
    logits_real, logits_generated = logits.detach().chunk(2)
    figures = {
        "rewards/real": real_rewards,
        "rewards/generated": generated_rewards,
        "rewards/accuracies": (real_rewards > generated_rewards).float(),
        "rewards/margins": real_rewards - generated_rewards,
        "logps/real": real.detach(),
        "logps/generated": generated.detach(),
        "logits/real": logits_real,
        "logits/generated": logits_generated,
    }
    return losses.mean(), {name: values.mean().item() for name, values in figures.items()}


def step(
    policy: nn.Module, opponent: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Padded], work: Work
) -> tuple[float, dict[str, float]]:
    """One optimiser step over micro-batches of one size. Returns its mean loss, and the mean of each figure with
    `grad_norm`, the norm before clipping."""
    total, metrics = 0.0, dict[str, float]()
    for batch in batches:
        loss, figures = loss_and_metrics(policy, opponent, batch, work.beta, work.precision)
        (loss / len(batches)).backward()
        total += loss.item() / len(batches)
        for name, value in figures.items():
            metrics[name] = metrics.get(name, 0.0) + value / len(batches)
    norm = nn.utils.clip_grad_norm_(policy.parameters(), work.max_grad_norm or float("inf"))
    optimizer.step()
    optimizer.zero_grad()
    return total, {**metrics, "grad_norm": float(norm)}


def batches_of(pairs: Sequence[Pair], indices: Sequence[int], work: Work) -> list[Padded]:
    """The padded micro-batches of one optimiser step, on the run's device."""
    chosen = [pairs[int(i)] for i in indices]
    parts = [chosen[at : at + work.micro] for at in range(0, len(chosen), work.micro)]
    return [{k: v.to(work.device) for k, v in pad_reference(part, work.pad_id).items()} for part in parts]


def run(
    work: Work, watch: Watch, policy: nn.Module | None = None, opponent: nn.Module | None = None
) -> list[float]:  # fmt: skip
    """The full training run; returns the loss of each optimiser step."""
    from spin_core.modeling.loading import load_model

    policy = policy or load_model(work.path, work.device, train=True)
    watch.weights(policy)
    opponent = opponent or load_model(work.path, work.device)
    watch.weights(policy, opponent)
    optimizer = torch.optim.RMSprop(policy.parameters(), lr=work.lr)
    plan, pairs, losses = work.plan, work.pairs, []
    for number in range(plan.stop_step):
        with watch.part("train"):
            optimizer.param_groups[0]["lr"] = plan.lr_at(number)
            batches = batches_of(pairs, work.pairs_of(number), work)
            losses.append(step(policy, opponent, optimizer, batches, work)[0])
        watch.step()
    return losses
