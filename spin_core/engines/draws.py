"""The draws of both engines: a row's next token by inverting its cumulative distribution at the row's own uniform
number.

Not a general sampler: no penalties, no top-k. That engines share it makes the answer a function of logits and seed
alone: engines whose logits agree draw the same tokens.
"""

from __future__ import annotations

import numpy as np
import torch


def uniforms(seed: int, count: int) -> np.ndarray:
    """The `count` uniform numbers [0, 1) of a row, float64: Philox keyed by the row's seed of 128 bits, so that one
    row's numbers tell nothing of another's."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def draw(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Token ids [B] from `logits` [B, V] and `uniform` [B] (float64): nucleus sampling at `temperature` > 0."""
    # Sums in float64: a float32 cumulative sum over 49k tokens is off by up to 1e-4, as much as many a token's
    # probability. The exponentials are good to 1e-7 in float32, and in float64 five times slower (30 ms of a step of
    # 32 rows, against 6).
    probs = torch.softmax(logits.float() / temperature, dim=-1)
    if top_p < 1:
        ranked, index = probs.sort(descending=True, stable=True)
        outside = ranked.cumsum(-1, dtype=torch.float64) - ranked >= top_p
        probs = probs.scatter(-1, index, ranked.masked_fill(outside, 0.0))
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    aim = uniform[:, None].to(logits.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, aim, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]
