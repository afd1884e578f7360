"""What the training loop learns: a loss over pairs (`finetune.loss`), or the likelihood of answers over rows (torch
module).

What it is *not*: no loop, no optimiser, no model, no formula (those are in `spin_core/modeling/loss.py`): log-probs
come in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from spin_core.config.choices import Loss
from spin_core.config.finetune import Finetune
from spin_core.modeling.collate import Tokens, identical
from spin_core.modeling.examples import Drawn, drawn, placed
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
CANCELS: tuple[Loss, ...] = ("sigmoid", "hinge", "alpha")
"""Losses of the difference of the two log-ratios alone: where y′ is y in tokens it is 0, whatever the model, and so is
the gradient. Not unpaired (each ratio has a term of its own), tpaw (y's ratio is lifted), tspin (its second term)."""
OVER_ALL = ("loss", "rewards/accuracies", "rewards/margins")
"""Figures that are known of a pair of identical answers without the model: means over all pairs."""


@dataclass
class SpinPairs:
    """Pairs, or a real answer and several generated ones, whose reference log-probs are known.

    What is drawn and computed together is a group of examples with one prompt and one real answer: `members` of each,
    or each alone. Its sequences are read once each, the real answer first, however many examples they are of.
    Identical pairs (y′ = y in tokens) whose loss is a constant (CANCELS, without `sft_weight`) are not computed: they
    count in OVER_ALL, while the other figures are means over the pairs that were computed.

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
    members: Sequence[np.ndarray] | None = None
    """Of each group its examples, int64; None: each example is one."""
    name: str = "pairs"
    """What one example is called in metrics and figures."""

    def __post_init__(self) -> None:
        self.shares = self.part.collation == "exact"  # the published code computes every answer of every pair
        constant = self.shares and self.part.loss in CANCELS and not self.part.sft_weight
        self.identical = identical(self.examples) if constant else np.zeros(len(self.examples), bool)

    def group(self, index: int, whole: bool = False) -> Sequence[Tokens]:
        """The group's token sequences, which share a prompt; none where it costs nothing, unless the `whole` is
        requested."""
        return self._read(index, whole).sequences

    def size(self, index: int) -> int:
        """How many pairs the group is of: what it counts in the mean over the global batch."""
        return 1 if self.members is None else len(self.members[index])

    def _read(self, index: int, whole: bool) -> Drawn:
        own = [index] if self.members is None else self.members[index].tolist()
        return drawn(self.examples, [i for i in own if whole or not self.identical[i]], self.shares)

    def sums(self, logps: Tensor, indices: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the groups' pairs, each times its group's weight (1, or 0 for filling up), summed, with graph; and
        figures likewise.

        `logps` [S]: of the groups' sequences, in order. Figures are sums over pairs, detached; `computed`: how many.
        """
        groups = [self._read(i, False) for i in indices]
        groups = [group if group.examples else self._read(i, True) for group, i in zip(groups, indices, strict=True)]
        reference = self.reference[[i for group in groups for i in group.examples]].to(logps.device)
        places = torch.from_numpy(placed(groups, self.reference.shape[2])).to(logps.device)
        targets = [one.targets for group in groups for one in group.sequences]
        ours, labels = F.pad(logps, (0, 1))[places], logps.new_tensor([*targets, 0])[places]
        there = places < len(logps)
        weights = weights.repeat_interleave(torch.tensor([len(g.examples) for g in groups], device=weights.device))
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
            "computed": torch.ones_like(real_rewards),
        }
        if self.part.sft_weight:
            losses = losses + self.part.sft_weight * nll
            figures["nll/real"] = nll.detach()
        return (losses * weights).sum(), {name: (values * weights).sum() for name, values in figures.items()}

    def means(self, sums: dict[str, float], size: int) -> dict[str, float]:
        """Of the sums over a step of `size` pairs."""
        computed = sums.pop("computed")
        rest = 0.0
        if computed < size:  # the loss of a pair without a difference
            nothing = torch.zeros(1, 2).double(), torch.zeros(1, 1, 2).double(), torch.ones(1, 2).bool()
            rest = float(LOSSES[self.part.loss](self.part, *nothing)[0])
        sums = {**sums, "loss": sums["loss"] + (size - computed) * rest}
        return {name: value / (size if name in OVER_ALL else computed) for name, value in sums.items()}


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

    def group(self, index: int, whole: bool = False) -> Sequence[Tokens]:
        return self.examples[index]

    def size(self, index: int) -> int:
        return self.examples[index][0].targets

    def sums(self, logps: Tensor, indices: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return -(logps * weights).sum(), {}

    def means(self, sums: dict[str, float], size: int) -> dict[str, float]:
        return {name: value / size for name, value in sums.items()}


Objective = SpinPairs | AnswerRows
