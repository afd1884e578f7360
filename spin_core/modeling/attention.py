"""Attention over packed groups, by a choice of kernels, as transformers' models call it (torch module).

It is registered with transformers' attention interface as `NAME`, so no model code is touched; the `Layout` comes as a
keyword through the model's forward. Where none comes (generation, padded batches) it is plain SDPA, or written out with
the soft-cap on scores that SDPA has not. Every kernel computes the blocks that are seen: per group the prompt and first
answer, then each further answer against prompt and itself. One dense mask over the packed sequence would be exact as
well, and compute the unseen blocks (1.2× slower per step, measured on CPU). What it is *not*: no fall-back (that is
`policy`); a model that needs more than causal attention gets `CannotPack`.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spin_core.config.choices import Kernel
from spin_core.errors import BadInput
from spin_core.modeling.packing import Layout

NAME = "spinloop"
"""What `set_attn_implementation` takes for it."""

PLAIN = frozenset(
    {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "cache_position", "is_causal"}
)
"""Keywords of a model's attention that do not change what packed attention computes."""

OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13)
"""An older torch than those whose CPU kernel was seen to take grouped keys. Repeated keys are as exact."""


class CannotPack(Exception):
    """The model's attention is more than softmax over causal keys. Says what it takes."""


def require(kernel: Kernel, device: torch.device, train: bool, precision: str) -> None:
    """Raises BadInput where the kernel's package or device is absent, or it cannot run there."""
    why = ""
    if kernel == "flex_attention" and train and device.type == "cpu":
        why = "flex_attention has no backward pass on CPU, so it can only score there;"
    elif kernel == "flash_attention_2" and find_spec("flash_attn") is None:
        why = (
            "flash_attention_2 needs the package flash-attn, which is not installed; `pip install flash-attn` on a "
            "CUDA machine, or"
        )
    elif kernel == "flash_attention_2" and device.type != "cuda":
        why = f"flash_attention_2 runs on CUDA, not on {device.type};"
    elif kernel == "flash_attention_2" and precision != "bfloat16":
        why = f"flash_attention_2 computes in bfloat16, precision is {precision};"
    if why:
        raise BadInput(f"runtime.attn_implementation: {why} use sdpa")


def _sdpa(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, softcap: float | None = None
) -> Tensor:
    """Segments of one call side by side in a padded batch; one segment alone is a view, without a copy."""
    calls = _prepare(layout, "sdpa", query.device, _sdpa_calls)
    outputs = []
    for q_rows, k_rows, mask, kept in calls:
        q, k, v = _take(query, q_rows), _take(key, k_rows), _take(value, k_rows)
        if softcap:
            out = _capped(q, k, v, mask, scaling, softcap)
        else:
            # On CUDA grouped keys with a mask, or in float32, would take the kernel that holds all scores. On a CPU
            # any would in torch 2.6 (380 MB where repeated keys take 38), and none in 2.13.
            shared = q.shape[1] // k.shape[1]
            repeated = (mask is not None or computed_in(q) == torch.float32) if q.is_cuda else OLD
            if shared > 1 and repeated:
                k, v, shared = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1), 1
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared > 1
            )
        out = out.transpose(1, 2).flatten(0, 1)
        outputs.append(out if kept is None else out.index_select(0, kept))
    return _restore(layout, outputs)


def computed_in(states: Tensor) -> torch.dtype:
    """The dtype that a kernel gets `states` in: under autocast its own, although rotary positions made them float32."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def _capped(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float
) -> Tensor:  # fmt: skip
    """Attention with soft-capped scores (Gemma 2), which SDPA has not: transformers leaves the cap out there. `mask` is
    what is seen, None: causal. Softmax in float32 at least."""
    k, v = (states.repeat_interleave(q.shape[1] // k.shape[1], 1) for states in (k, v))
    scores = (q @ k.mT) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(
        ~mask, torch.finfo(torch.float32).min
    )
    return scores.softmax(-1).to(v.dtype) @ v


def _sdpa_calls(layout: Layout, device: torch.device) -> list[tuple]:
    """For each call: padded rows of queries [n, Lq] and keys [n, Lk], mask [n, 1, Lq, Lk] or None for plainly causal,
    and which of the n·Lq outputs are real (None: all)."""
    prepared = []
    for call in layout.calls:
        q, q_real = _padded(call.q, call.q_lengths, left=False)
        # Keys of a branch end with its own tokens: padded on the left, query i of every row sees the same columns.
        k, k_real = (q, q_real) if call.trunk else _padded(call.k, call.k_lengths, left=True)
        mask = None
        if not call.trunk or layout.hidden is not None:
            seen = k_real if layout.hidden is None else k_real & ~layout.hidden[k]
            # Query i is the token behind all keys up to its own.
            columns, places = np.arange(k.shape[1])[None, None, :], np.arange(q.shape[1])[None, :, None]
            own = places if call.trunk else places + (k.shape[1] - np.array(call.q_lengths))[:, None, None]
            # No row is empty, which SDPA would make NaN: `packable` has the first token of every group seen.
            mask = torch.from_numpy((seen[:, None, :] & (columns <= own))[:, None]).to(device)
        kept = None if q_real.all() else torch.from_numpy(np.flatnonzero(q_real)).to(device)
        prepared.append((_index(q, device), _index(k, device), mask, kept))
    return prepared


def _padded(rows: np.ndarray, lengths: tuple[int, ...], left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ragged places as [n, longest], padded with place 0, and which of them are real."""
    width, places = max(lengths), np.arange(max(lengths))
    sizes = np.array(lengths)[:, None]
    real = places >= width - sizes if left else places < sizes
    padded = np.zeros(real.shape, np.int64)
    padded[real] = rows
    return padded, real


def _index(rows: np.ndarray, device: torch.device) -> slice | Tensor:
    """One contiguous segment as a slice, which needs no copy."""
    flat = rows[0] if len(rows) == 1 else None
    if flat is not None and flat[-1] - flat[0] == len(flat) - 1:
        return slice(int(flat[0]), int(flat[-1]) + 1)
    return torch.from_numpy(rows).to(device)


def _take(states: Tensor, rows: slice | Tensor) -> Tensor:
    """[1, H, T, D] → [n, H, L, D]."""
    if isinstance(rows, slice):
        return states[:, :, rows]
    flat = states[0].transpose(0, 1).index_select(0, rows.flatten())
    return flat.view(*rows.shape, *flat.shape[1:]).transpose(1, 2)


def _restore(layout: Layout, outputs: list[Tensor]) -> Tensor:
    """Outputs of the calls [T₁, H, D], [T₂, H, D] in the order of the packed sequence: [1, T, H, D]."""
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    order = _prepare(layout, "order", out.device, _order)
    return (out if order is None else out.index_select(0, order))[None]


def _order(layout: Layout, device: torch.device) -> Tensor | None:
    places = np.concatenate([call.q for call in layout.calls])
    order = np.argsort(places)
    return None if (order == np.arange(len(order))).all() else torch.from_numpy(order).to(device)


def _flex(layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """FlexAttention with a block mask: blocks that nobody sees are skipped. Compiled on CUDA, plain elsewhere."""
    block_mask = _prepare(layout, "flex", query.device, _block_mask)
    # Rotary positions give float32 even under autocast, which not every torch casts here.
    query, key = query.to(value.dtype), key.to(value.dtype)
    out = _flex_kernel(query.device.type)(
        query, key, value, block_mask=block_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2)


def _block_mask(layout: Layout, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    group, branch = (torch.from_numpy(part).to(device) for part in (layout.group, layout.branch))
    hidden = np.zeros(len(layout.group), bool) if layout.hidden is None else layout.hidden
    seen = torch.from_numpy(~hidden).to(device)

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        of_prompt_or_own = (branch[k] == 0) | (branch[k] == branch[q])
        return (group[q] == group[k]) & (k <= q) & of_prompt_or_own & seen[k]

    return create_block_mask(
        visible, None, None, len(group), len(group), device=str(device), _compile=device.type == "cuda"
    )


@cache
def _flex_kernel(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


def _flash(layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """flash-attn's varlen kernel, whose causal mask is aligned to the last key: just what a branch needs."""
    from flash_attn import flash_attn_varlen_func

    outputs = []
    # It takes half precision only. Rotary positions give float32 even under autocast; the probe has no autocast.
    half = value.dtype if value.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    flat = [states[0].transpose(0, 1).to(half) for states in (query, key, value)]
    for q_rows, k_rows, q_ends, k_ends, call in _prepare(layout, "flash", query.device, _varlen_calls):
        q, k, v = flat[0][q_rows], flat[1][k_rows], flat[2][k_rows]
        longest = max(call.q_lengths), max(call.k_lengths)
        outputs.append(flash_attn_varlen_func(q, k, v, q_ends, k_ends, *longest, softmax_scale=scaling, causal=True))
    return _restore(layout, outputs).to(value.dtype)


def _varlen_calls(layout: Layout, device: torch.device) -> list[tuple]:
    return [
        (
            *(torch.from_numpy(places).to(device) for places in (call.q, call.k)),
            *(
                torch.tensor([0, *np.cumsum(n)], dtype=torch.int32, device=device)
                for n in (call.q_lengths, call.k_lengths)
            ),
            call,
        )
        for call in layout.calls
    ]


def _prepare(layout: Layout, name: str, device: torch.device, make: Any) -> Any:
    known = layout.prepared
    if (name, device) not in known:
        known[name, device] = make(layout, device)
    return known[name, device]


KERNELS: dict[str, Any] = {"sdpa": _sdpa, "flex_attention": _flex, "flash_attention_2": _flash}


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    layout: Layout | None = None, scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, softcap: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' signature: query [1, H, T, D], key and value [1, Hkv, T, D] → [1, T, H, D]. Raises CannotPack."""
    if layout is None and softcap:
        return _capped(query, key, value, attention_mask, scaling, softcap).transpose(1, 2), None
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
    if sliding_window and layout.longest > sliding_window:  # one that no config says; `policy` knows the others
        raise CannotPack(f"its sliding window of {sliding_window} is shorter than a sequence of {layout.longest}")
    if taken := sorted(name for name, given in more.items() if given is not None and name not in PLAIN):
        raise CannotPack(f"its attention takes {', '.join(taken)}")
    if softcap and layout.kernel != "sdpa":
        raise CannotPack(f"{layout.kernel} has no soft-cap of scores here, sdpa has")
    capped = {"softcap": softcap} if softcap else {}
    return KERNELS[layout.kernel](layout, query, key, value, scaling, **capped), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
