"""What the training loop learns: SPIN's loss over pairs, or the likelihood of answers over rows (torch module).

What it is *not*: no loop, no optimiser. Both are `training.Objective`s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spin_core.collate import Tokens, pad, pad_reference
from spin_core.loss import LossName, spin_loss
from spin_core.models import Precision, answer_logps


@dataclass
class SpinPairs:
    """SPIN over pairs whose opponent log-probs are known: `opponent` float32 [N, 2], columns real and generated.

    The mean is over pairs. Figures under the reference's names; a tie of the rewards counts as wrong, as there.
    """

    pairs: Sequence[tuple[Tokens, Tokens]]
    opponent: Tensor
    pad_id: int
    beta: float
    loss: LossName = "sigmoid"
    precision: Precision = "float32"
    reference: bool = False
    name: str = "pairs"

    def length(self, index: int) -> int:
        return max(len(tokens) for tokens in self.pairs[index])

    def size(self, index: int) -> int:
        return 1

    def sums(self, model: torch.nn.Module, indices: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        pairs = [self.pairs[i] for i in indices]
        if self.reference:
            batch = pad_reference(pairs, self.pad_id)
        else:
            batch = pad([*(real for real, _ in pairs), *(generated for _, generated in pairs)], self.pad_id)
        real, generated = answer_logps(model, batch, self.precision).chunk(2)
        opponent = self.opponent[indices].to(real.device)
        losses, real_rewards, generated_rewards = spin_loss(
            real, generated, opponent[:, 0], opponent[:, 1], self.beta, self.loss
        )
        figures = {
            "rewards/real": real_rewards,
            "rewards/generated": generated_rewards,
            "rewards/accuracies": (real_rewards > generated_rewards).float(),
            "rewards/margins": real_rewards - generated_rewards,
            "logps/real": real.detach(),
            "logps/generated": generated.detach(),
        }
        return (losses * weights).sum(), {name: (values * weights).sum() for name, values in figures.items()}


@dataclass
class AnswerRows:
    """Negative log-likelihood of answers in nats per token: the mean is over all answer tokens of the global batch.

    So a long answer weighs more than a short one, and micro-batches and processes do not change the result.
    """

    rows: Sequence[Tokens]
    pad_id: int
    precision: Precision = "float32"
    name: str = "rows"

    def length(self, index: int) -> int:
        return len(self.rows[index])

    def size(self, index: int) -> int:
        return self.rows[index].targets

    def sums(self, model: torch.nn.Module, indices: list[int], weights: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logps = answer_logps(model, pad([self.rows[i] for i in indices], self.pad_id), self.precision)
        return -(logps * weights).sum(), {}
