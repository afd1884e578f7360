"""The SPIN loss and the log-probs it is made of (torch module).

What it is *not*: no model, no tokens, no reduction over the batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spin_core.config.choices import Loss

IGNORE = -100
"""Label of a position that is not part of an answer (the default `ignore_index` of cross-entropy)."""


def spin_loss(
    policy_real: Tensor,
    policy_generated: Tensor,
    opponent_real: Tensor,
    opponent_generated: Tensor,
    beta: float,
    loss: Loss = "sigmoid",
    reference_free: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each pair (paper, arXiv 2401.01335, eq. 4.7).

        z = β·[ (log p_θ(y|x) − log p_θt(y|x)) − (log p_θ(y′|x) − log p_θt(y′|x)) ]
        sigmoid: ℓ(z) = −log σ(z)        hinge: ℓ(z) = max(0, 1 − z)

    Shapes: four [B] tensors of summed answer log-probs in nats (y: real answer, y′: the opponent's own) → `losses` [B]
    with graph, `real_rewards` [B] = β·(log p_θ(y|x) − log p_θt(y|x)) and `generated_rewards` [B] alike, both detached.
    `reference_free` takes the opponent's log-ratio as 0 in the loss; the rewards keep it. Raises ValueError on another
    `loss`.
    """
    opponent_ratio = 0.0 if reference_free else opponent_real - opponent_generated
    z = beta * ((policy_real - policy_generated) - opponent_ratio)
    if loss == "sigmoid":
        losses = -F.logsigmoid(z)
    elif loss == "hinge":
        losses = torch.relu(1 - z)
    else:
        raise ValueError(f"loss must be 'sigmoid' or 'hinge', not {loss!r}")
    real_rewards = beta * (policy_real - opponent_real).detach()
    generated_rewards = beta * (policy_generated - opponent_generated).detach()
    return losses, real_rewards, generated_rewards


def per_label(logps: Tensor, labels: Tensor) -> Tensor:
    """Mean log-prob of a label, in nats: sums over answers [B], divided by their numbers of labels [B].

    With it, β weighs a log-ratio per token, so a long answer does not outweigh a short one; its negative is the anchor
    that `sft_weight` adds (the NLL per token of arXiv 2404.19733). An answer without labels is divided by 1.
    """
    return logps / labels.clamp(min=1)


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-prob of each target: logits [B, T, V] that predict targets [B, T] → [B, T], 0 where the target is −100.

    Half-precision logits are raised to float32 first: a sum of 1,000 log-probs in bfloat16 is off by whole nats.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return -nll.view(targets.shape)


def sequence_logps(logits: Tensor, labels: Tensor, average: bool = False) -> Tensor:
    """log p(answer | prompt) of each sequence: logits [B, T, V], labels [B, T] → [B], in nats.

    Position t predicts label t+1; labels of −100 do not count. The *sum* over the answer is SPIN's log p; `average`
    divides by the number of labels (nan where there is none).
    """
    targets = labels[:, 1:]
    sums = token_logps(logits[:, :-1], targets).sum(-1)
    return sums / (targets != IGNORE).sum(-1) if average else sums
