"""Log-probs of labels from hidden states, without ever holding the logits of all of them (torch module).

The vocabulary is by far the widest layer: 49,152 logits in float32 are 197 kB per label, and autograd would keep
several copies. Here the output layer runs over chunks of labels; the backward pass is its own. What it is *not*: no
loss, and no output layer that is more than linear, scale and soft-cap (`head_of` finds these; `policy` checks them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Float32 logits held at once. On CPU more gains nothing; a GPU needs more than a thousand rows to be busy."""


@dataclass(frozen=True)
class Head:
    """Output layer: logits = softcap · tanh(scale · (h Wᵀ + bias) / softcap); softcap 0 is none."""

    layer: torch.nn.Linear
    scale: float = 1.0
    softcap: float = 0.0
    in_place: bool = False
    """Add the weight's gradient to `weight.grad` right away, not by autograd, and use the kept log-softmax up: 170 MB
    less for 300 labels and 49,152 × 576 weights, just when memory is fullest. For a single backward pass; hooks on the
    weight (DDP) do not see it, nor does autograd.grad."""


def head_of(model: PreTrainedModel) -> Head | None:
    """The model's output layer with what its config says of scale and soft-cap; None where it is no linear layer."""
    layer, config = model.get_output_embeddings(), model.config
    if type(layer) is not torch.nn.Linear:
        return None
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(layer, scale, float(getattr(config, "final_logit_softcapping", None) or 0.0))


def label_logps(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """log p of each target, float32 [N], from hidden states [N, H] and targets int64 [N], with graph.

    The product has the dtype of `hidden`, under autocast bfloat16; everything behind it is float32 (float64 stays).
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):  # the last norm gives float32 even there
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    with torch.autocast(kind, enabled=False):
        layer = head.layer
        return _LabelLogps.apply(hidden, layer.weight, layer.bias, targets, head)  # type: ignore[no-any-return]


class _LabelLogps(torch.autograd.Function):
    """One chunk of labels keeps its log-softmax for the backward pass; of several, each is computed again there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, head: Head) -> Tensor:
        ctx.head = head
        weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        ctx.rows = max(1, CHUNK_BYTES.get(hidden.device.type, 64 << 20) // (4 * weight.shape[0]))
        logps, kept = [], None
        for rows, labels in zip(hidden.split(ctx.rows), targets.split(ctx.rows), strict=True):
            kept = torch.log_softmax(_logits(rows, weight, bias, head), -1)
            logps.append(kept.gather(-1, labels[:, None]).squeeze(-1))
        single = len(logps) == 1 and any(ctx.needs_input_grad)
        ctx.save_for_backward(hidden, weight, bias, targets, kept if single else None)
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hidden, weight, bias, targets, kept = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        parts: list[Tensor] = []
        grad_weight = grad_bias = None
        for rows, labels, grad in zip(*(t.split(ctx.rows) for t in (hidden, targets, grads[0])), strict=True):
            lsm = torch.log_softmax(_logits(rows, weight, bias, ctx.head), -1) if kept is None else kept
            d = _grad_logits(lsm, labels, grad, rows, weight, bias, ctx.head).to(hidden.dtype)
            if need_hidden:
                parts.append(d @ weight)
            if need_weight:
                grad_weight = _add_product(ctx.head, grad_weight, d, rows)
            if need_bias:
                more = d.sum(0, dtype=ctx.head.layer.bias.dtype)
                grad_bias = more if grad_bias is None else grad_bias.add_(more)
        return torch.cat(parts) if need_hidden else None, grad_weight, grad_bias, None, None


def _add_product(head: Head, sofar: Tensor | None, d: Tensor, rows: Tensor) -> Tensor | None:
    """dᵀ · rows added to the weight's gradient so far, in the weight's own dtype; None where that is in place."""
    weight = head.layer.weight
    target = weight.grad if head.in_place else sofar
    if target is None:
        target = (d.T @ rows).to(weight.dtype)
    elif d.dtype == target.dtype:
        target.addmm_(d.T, rows)
    else:
        target.add_(d.T @ rows)
    if not head.in_place:
        return target
    weight.grad = target
    return None


def _logits(rows: Tensor, weight: Tensor, bias: Tensor | None, head: Head) -> Tensor:
    logits = torch.nn.functional.linear(rows, weight, bias)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if head.scale != 1:
        logits = logits.mul_(head.scale)
    return logits.div_(head.softcap).tanh_().mul_(head.softcap) if head.softcap else logits


def _grad_logits(
    lsm: Tensor, labels: Tensor, grad: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None, head: Head
) -> Tensor:
    """Gradient of Σ grad·log p with respect to h Wᵀ + bias: grad · (one-hot − p), through soft-cap and scale."""
    d = (lsm.exp_() if head.in_place else lsm.exp()).mul_(-grad[:, None])
    d.scatter_add_(-1, labels[:, None], grad[:, None])
    if head.softcap:
        d.mul_(1 - (_logits(rows, weight, bias, head) / head.softcap).square_())
    return d.mul_(head.scale) if head.scale != 1 else d
