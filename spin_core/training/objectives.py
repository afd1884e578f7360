"""What the training loop learns: SPIN's loss over pairs, or the likelihood of answers over rows (torch module).

What it is *not*: no loop, no optimiser, no model: log-probs come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spin_core.config.choices import Loss
from spin_core.modeling.collate import Tokens
from spin_core.modeling.loss import per_label, spin_loss


@dataclass
class SpinPairs:
    """SPIN over pairs whose opponent log-probs are known: `opponent` float32 [N, 2], columns real and generated.

    The mean is over pairs. Figures under the reference's names; a tie of the rewards counts as wrong, as there.
    `length_normalised`: log-ratios per label of their answer, so rewards too; `sft_weight` times `nll/real` (nats per
    label of the real answer, averaged over pairs) is added to the loss. Neither changes `logps/…`, nats per answer.
    """

    examples: Sequence[tuple[Tokens, ...]]
    opponent: Tensor
    beta: float
    loss: Loss = "sigmoid"
    sft_weight: float = 0.0
    length_normalised: bool = False
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
        ours, theirs = logps.view(-1, 2), self.opponent[indices].to(logps.device)
        real, generated = ours.unbind(1)
        labels = torch.tensor([[tokens.targets for tokens in self.examples[i]] for i in indices], device=logps.device)
        if self.length_normalised:
            ours, theirs = per_label(ours, labels), per_label(theirs, labels)
        losses, real_rewards, generated_rewards = spin_loss(
            ours[:, 0], ours[:, 1], theirs[:, 0], theirs[:, 1], self.beta, self.loss
        )
        figures = {
            "rewards/real": real_rewards,
            "rewards/generated": generated_rewards,
            "rewards/accuracies": (real_rewards > generated_rewards).float(),
            "rewards/margins": real_rewards - generated_rewards,
            "logps/real": real.detach(),
            "logps/generated": generated.detach(),
        }
        if self.sft_weight:
            nll = -per_label(real, labels[:, 0])
            losses = losses + self.sft_weight * nll
            figures["nll/real"] = nll.detach()
        return (losses * weights).sum(), {name: (values * weights).sum() for name, values in figures.items()}


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
