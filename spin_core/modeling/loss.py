"""The losses of `finetune.loss`, each a function of the log-probs that it names (torch module).

Formulas with sources, and what they agree with: docs/objectives.md. What it is *not*: no model, no tokens, no
reduction over the batch: every loss is [B]. Log-probs are of whole answers in nats (or per label of them), [B] where
nothing else is said; a log-ratio is log p_θ − log p of another model. Gradients reach whatever has a graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spin_core.config.choices import Loss

SPIN: dict[Loss, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda z: -F.logsigmoid(z),  # the paper's choice
    "hinge": lambda z: torch.relu(1 - z),
}
"""SPIN's own losses: ℓ of z [B] by the name that `finetune.loss` has for it."""


def spin_loss(
    policy_real: Tensor, policy_generated: Tensor, opponent_real: Tensor, opponent_generated: Tensor, beta: float,
    loss: Loss = "sigmoid",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Loss of each pair (paper, arXiv 2401.01335, eq. 4.7).

        z = β·[ (log p_θ(y|x) − log p_θt(y|x)) − (log p_θ(y′|x) − log p_θt(y′|x)) ],    ℓ(z): see SPIN

    Shapes: four [B] tensors of summed answer log-probs in nats (y: real answer, y′: the opponent's own) → `losses` [B]
    with graph, `real_rewards` [B] = β·(log p_θ(y|x) − log p_θt(y|x)) and `generated_rewards` [B] alike, both detached.
    Raises ValueError on another `loss`.
    """
    if loss not in SPIN:
        raise ValueError(f"loss must be one of {', '.join(SPIN)}, not {loss!r}")
    z = beta * ((policy_real - policy_generated) - (opponent_real - opponent_generated))
    real_rewards = beta * (policy_real - opponent_real).detach()
    generated_rewards = beta * (policy_generated - opponent_generated).detach()
    return SPIN[loss](z), real_rewards, generated_rewards


def unpaired_loss(real: Tensor, generated: Tensor, a: float, b: float, w: float) -> Tensor:
    """−log σ(a·r(y) + b) − w·log σ(−a·r(y′) − b): SPACE with a = 1, b = −ln μ, w = μ; GSIL with w = 1.

    `real`, `generated`: log-ratios r to the opponent.
    """
    return -F.logsigmoid(a * real + b) - w * F.logsigmoid(-a * generated - b)


def triplet_loss(real: Tensor, generated: Tensor, first: Tensor | None, alpha: float, beta: float) -> Tensor:
    """T-SPIN: −log σ(α[s(y) − s(y′)]) − β·log σ(α[s(y′) − s(y₀)]).

    `real`, `generated`, `first`: s of the three answers, log-probs under the policy (or log-ratios to the opponent);
    y₀ is θ_0's. Without `first` the second term is left out.
    """
    current = -F.logsigmoid(alpha * (real - generated))
    return current if first is None else current - beta * F.logsigmoid(alpha * (generated - first))


def team_loss(real: Tensor, generated: Tensor, lift: float, sharpness: float) -> tuple[Tensor, Tensor]:
    """TPAW: Σ_j β_j·ℓ(α_j·P_j(y) − P_j(y′)), and the β_j [B, players]; ℓ(z) = −log σ(z), and constants to the gradient
    α_j = lift where P_j(y) ≤ 0, else 1, and β_j = softmax_j(−sharpness·(P_j(y) − P_j(y′))).

    `real`, `generated`: P_j, [B, players], the weighted log-ratio to each player.
    """
    lifts = torch.where(real.detach() <= 0, lift, 1.0)
    weights = torch.softmax(-sharpness * (real - generated).detach(), dim=1)
    return (weights * -F.logsigmoid(lifts * real - generated)).sum(1), weights


def mixed(opponent: Tensor, base: Tensor, base_share: float) -> Tensor:
    """α-SPIN: the opponent's log-prob in the geometric mixture of θ_t and θ_0 (up to its normaliser, which is the same
    for both answers)."""
    return (1 - base_share) * opponent + base_share * base


def discriminative_loss(
    real: Tensor, generated: Tensor, reference: Tensor, there: Tensor, tau: float, gamma: float
) -> Tensor:  # fmt: skip
    """DFT: −s(y) + τ/γ·log(1 − γ + γ·mean_j exp(s(y′_j)/τ − log p(y′_j))).

    `real`: s of the real answer; `generated` [B, m]: of the generated ones, of which `there` (bool) are; `reference`
    [B, m]: log p of each under the model that it was sampled from (or 0). γ = 1 is the paper's formula; below it the
    gradient is that of the authors' moving average at its first visit of a prompt, and the loss has a floor.
    """
    ratios = (generated / tau - reference).masked_fill(~there, -torch.inf)
    mean = torch.logsumexp(ratios, dim=1) - there.sum(1).log()
    if gamma < 1:
        mean = torch.logaddexp(mean + math.log(gamma), mean.new_tensor(math.log1p(-gamma)))
    return -real + tau / gamma * mean


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
