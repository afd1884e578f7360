"""What the training loop learns: a loss over pairs (`finetune.loss`), or the likelihood of answers over rows (torch
module).

What it is *not*: no loop, no optimiser, no model, no formula (those are in `spin_core/modeling/loss.py`): log-probs
come in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spin_core.config.choices import Loss
from spin_core.config.finetune import Finetune
from spin_core.modeling.collate import Tokens
from spin_core.modeling.loss import (
    discriminative_loss,
    mixed,
    per_label,
    spin_loss,
    team_loss,
    triplet_loss,
    unpaired_loss,
)

Learned = tuple[Tensor, Tensor, Tensor]
"""Losses [B] with graph, rewards of the real and of the generated answers, [B] and detached."""


@dataclass
class SpinPairs:
    """Pairs, or a real answer and several generated ones, whose reference log-probs are known.

    `reference`: float32 [N, models, answers], of each example's answers in order (0 beyond its last) under the models
    that `spin_core.config.finetune.scored` names; no model where the loss is reference-free. The mean is over examples.
    Figures under the published code's names; a tie of the rewards counts as wrong, as there. `rewards/…` are what the
    loss compares (docs/objectives.md). With `length_normalised` log-probs count per label of their answer, so rewards
    too; `sft_weight` times `nll/real` (nats per label of the real answer, averaged over examples) is added to the loss.
    Neither changes `logps/…`, nats per answer.
    """

    examples: Sequence[tuple[Tokens, ...]]
    reference: Tensor
    part: Finetune
    name: str = "pairs"
    """What one example is called in metrics and figures."""

    def group(self, index: int) -> Sequence[Tokens]:
        """The example's token sequences, which share a prompt."""
        return self.examples[index]

    def size(self, index: int) -> int:
        """How much the example counts in the mean over the global batch."""
        return 1

    def sums(self, logps: Tensor, indices: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the examples, each times its weight (1, or 0 for filling up), summed, with graph; and figures
        likewise.

        `logps` [S]: of the examples' sequences, in order. Figures are sums over examples (not over sizes), detached.
        """
        reference, width = self.reference[indices].to(logps.device), self.reference.shape[2]
        groups = [self.examples[i] for i in indices]
        counts = [len(group) for group in groups]
        labels = logps.new_tensor([[one.targets for one in group] + [0] * (width - len(group)) for group in groups])
        ours = torch.stack([F.pad(part, (0, width - len(part))) for part in logps.split(counts)])
        there = torch.arange(width, device=logps.device) < torch.tensor(counts, device=logps.device)[:, None]
        real, generated = ours[:, 0], ours[:, 1]
        nll = -per_label(real, labels[:, 0])
        if self.part.per_token:
            ours, reference = per_label(ours, labels), per_label(reference, labels[:, None])
        losses, real_rewards, generated_rewards = LOSSES[self.part.loss](self.part, ours, reference, there)
        figures = {
            "rewards/real": real_rewards,
            "rewards/generated": generated_rewards,
            "rewards/accuracies": (real_rewards > generated_rewards).float(),
            "rewards/margins": real_rewards - generated_rewards,
            "logps/real": real.detach(),
            "logps/generated": generated.detach(),
        }
        if self.part.sft_weight:
            losses = losses + self.part.sft_weight * nll
            figures["nll/real"] = nll.detach()
        return (losses * weights).sum(), {name: (values * weights).sum() for name, values in figures.items()}


def _spin(part: Finetune, ours: Tensor, reference: Tensor, there: Tensor) -> Learned:
    opponent = reference[:, 0]
    return spin_loss(ours[:, 0], ours[:, 1], opponent[:, 0], opponent[:, 1], part.beta, part.loss)


def _alpha(part: Finetune, ours: Tensor, reference: Tensor, there: Tensor) -> Learned:
    """At iteration 0 θ_t is θ_0, and the one model that scored."""
    opponent = mixed(reference[:, 0], reference[:, -1], part.alpha.base_share)
    return spin_loss(ours[:, 0], ours[:, 1], opponent[:, 0], opponent[:, 1], part.beta)


def _unpaired(part: Finetune, ours: Tensor, reference: Tensor, there: Tensor) -> Learned:
    own, ratios = part.unpaired, ours - reference[:, 0]
    real, generated = ratios[:, 0], ratios[:, 1]
    losses = unpaired_loss(real, generated, own.a, own.b, own.w)
    return losses, own.a * real.detach(), own.a * generated.detach()


def _tspin(part: Finetune, ours: Tensor, reference: Tensor, there: Tensor) -> Learned:
    """A pair that has no third answer learns by the first term alone."""
    alpha, beta = part.tspin.alpha, part.tspin.beta
    scores = ours if part.reference_free else ours - reference[:, 0]
    real, generated = scores[:, 0], scores[:, 1]
    losses = triplet_loss(real, generated, None, alpha, beta)
    if scores.shape[1] > 2:
        losses = torch.where(there[:, 2], triplet_loss(real, generated, scores[:, 2], alpha, beta), losses)
    return losses, alpha * real.detach(), alpha * generated.detach()


def _tpaw(part: Finetune, ours: Tensor, reference: Tensor, there: Tensor) -> Learned:
    """The rewards are those of the players, as they weigh."""
    ratios = part.beta * (ours[:, None] - reference)
    real, generated = ratios[:, :, 0], ratios[:, :, 1]
    losses, weights = team_loss(real, generated, part.tpaw.lift, part.tpaw.sharpness)
    return losses, (weights * real.detach()).sum(1), (weights * generated.detach()).sum(1)


def _dft(part: Finetune, ours: Tensor, reference: Tensor, there: Tensor) -> Learned:
    """The generated answers' reward is their mean."""
    sampled = torch.zeros_like(ours) if part.reference_free else reference[:, 0]
    tau = part.dft.tau or (0.3 if part.reference_free else 1.0)
    real, generated, of = ours[:, 0], ours[:, 1:], there[:, 1:]
    losses = discriminative_loss(real, generated, sampled[:, 1:], of, tau, part.dft.gamma)
    return losses, real.detach(), (generated.detach() * of).sum(1) / of.sum(1)


LOSSES: dict[Loss, Callable[[Finetune, Tensor, Tensor, Tensor], Learned]] = {
    "sigmoid": _spin, "hinge": _spin, "unpaired": _unpaired, "tspin": _tspin, "tpaw": _tpaw, "alpha": _alpha,
    "dft": _dft,
}  # fmt: skip
"""By the name that `finetune.loss` has for it, from its settings, the policy's log-probs [B, answers] (real, generated,
further ones), the reference log-probs [B, models, answers], and which answers there are, bool [B, answers]. A new one
is its formula in `modeling/loss.py`, a line here, its name in `choices.Loss` and its settings in
`config/objectives.py` (a test compares the names)."""


@dataclass
class AnswerRows:
    """Negative log-likelihood of answers in nats per token: the mean is over all answer tokens of the global batch.

    So a long answer weighs more than a short one, and micro-batches and processes do not change the result.
    """

    examples: Sequence[tuple[Tokens, ...]]
    name: str = "rows"

    def group(self, index: int) -> Sequence[Tokens]:
        return self.examples[index]

    def size(self, index: int) -> int:
        return self.examples[index][0].targets

    def sums(self, logps: Tensor, indices: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return -(logps * weights).sum(), {}


Objective = SpinPairs | AnswerRows
