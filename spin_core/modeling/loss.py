"""The SPIN loss and the log-probs it is made of (torch module).

What it is *not*: no model, no tokens, no reduction over the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spin_core.config.choices import Loss

LOSSES: dict[Loss, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda z: -F.logsigmoid(z),  # the paper's choice
    "hinge": lambda z: torch.relu(1 - z),
}
"""ℓ by the name that `finetune.loss` has for it: of z [B], the loss of each pair. A new one is its function, a line
here and its name in `choices.Loss` (a test compares the two)."""


def spin_loss(
    policy_real: Tensor, policy_generated: Tensor, opponent_real: Tensor, opponent_generated: Tensor, beta: float,
    loss: Loss = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss of each pair (paper, arXiv 2401.01335, eq. 4.7).

        z = β·[ (log p_θ(y|x) − log p_θt(y|x)) − (log p_θ(y′|x) − log p_θt(y′|x)) ],    ℓ(z): see LOSSES

    Shapes: four [B] tensors of summed answer log-probs in nats (y: real answer, y′: the opponent's own) → `losses` [B]
    with graph, `real_rewards` [B] = β·(log p_θ(y|x) − log p_θt(y|x)) and `generated_rewards` [B] alike, both detached.
    Raises ValueError on another `loss`.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
    z = beta * ((policy_real - policy_generated) - (opponent_real - opponent_generated))
    real_rewards = beta * (policy_real - opponent_real).detach()
    generated_rewards = beta * (policy_generated - opponent_generated).detach()
    return LOSSES[loss](z), real_rewards, generated_rewards


def per_label(logps: Tensor, labels: Tensor) -> Tensor:
    """Mean log-prob of a label, in nats: sums over answers [B], divided by their numbers of labels [B].

    With it, β weighs a log-ratio per token, so a long answer does not outweigh a short one; its negative is the anchor
    that `sft_weight` adds (the NLL per token of arXiv 2404.19733). An answer without labels is divided by 1.
    """
    return logps / labels.clamp(min=1)


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-prob of each target: logits [B, T, V] that predict targets [B, T] → [B, T], 0 where the target is
    −100 (what cross-entropy ignores).

    Half-precision logits are raised to float32 first: a sum of 1,000 log-probs in bfloat16 is off by nats.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return -nll.view(targets.shape)
