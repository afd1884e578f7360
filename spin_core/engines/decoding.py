"""From logits to answers: which token each row draws, and whether it was its last (torch module).

All engines draw here, by inverting a row's cumulative distribution at the row's own uniform number, so that an answer
is a function of logits and seed alone: where logits agree, so do the tokens. What it is *not*: no model, no cache, no
penalties, no cut text (the stage cuts at a stop string; here its tokens are kept).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spin_core.engines import Request, Sampling
from spin_core.job import Bar


@dataclass
class OpenRow:
    """One answer at work. `uniform`: its own random numbers in [0, 1), one per token, float64."""

    request: Request
    uniform: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    finish: str = ""
    """Empty while it goes on."""


class Sampler:
    """Draws each row's next token with the row's own numbers: neither the batch nor a global generator enters.
    `tokenizer` is needed for stop strings alone."""

    def __init__(self, sampling: Sampling, tokenizer: PreTrainedTokenizerBase | None = None):
        self.sampling, self.tokenizer = sampling, tokenizer
        self.stop_ids = sorted(sampling.stop_ids)
        # A token adds a byte at least, but for special ones (left out of the text). Four more, as the first tokens of
        # a piece can decode otherwise than inside it: half a character, or a space that is dropped at the start.
        self.tail = max((len(text.encode()) for text in sampling.stop), default=0) + 4
        self.special = frozenset(tokenizer.all_special_ids) if tokenizer else frozenset()

    def row(self, request: Request) -> OpenRow:
        """The request before its first token."""
        return OpenRow(request, uniforms(request.seed, self.sampling.max_new_tokens))

    def draw(self, rows: Sequence[OpenRow], logits: Tensor) -> None:
        """Gives each row one more token from its logits [rows, vocab_size], and `finish` where that was its last.

        `logits` is overwritten.
        """
        raw = logits.clone() if self.sampling.logprobs else logits
        early = [i for i, row in enumerate(rows) if len(row.tokens) < self.sampling.min_new_tokens]
        if early and self.stop_ids:
            ids = torch.tensor(self.stop_ids, device=logits.device)
            logits[torch.tensor(early, device=logits.device)[:, None], ids] = -torch.inf
        if self.sampling.temperature > 0:
            uniform = torch.tensor([row.uniform[len(row.tokens)] for row in rows], dtype=torch.float64)
            drawn = draw(logits, uniform, self.sampling.temperature, self.sampling.top_p, self.sampling.top_k)
        else:
            drawn = logits.argmax(-1)
        if self.sampling.logprobs:
            logps = raw.float().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
            for row, logp in zip(rows, logps.tolist(), strict=True):
                row.logps.append(logp)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            row.tokens.append(token)
            row.finish = self._finish(row.tokens)

    def _finish(self, tokens: list[int]) -> str:
        if tokens[-1] in self.sampling.stop_ids:
            return "stop"
        if self.tokenizer is not None and self.sampling.stop:
            # The last tokens that can hold a stop string; special ones are not in the text and do not count.
            tail = list(islice((token for token in reversed(tokens) if token not in self.special), self.tail))
            text = self.tokenizer.decode(tail[::-1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
            if any(stop in text for stop in self.sampling.stop):
                return "stop"
        return "length" if len(tokens) >= self.sampling.max_new_tokens else ""


class Rate:
    """Counts drawn tokens and passes of the model, and shows them while it works."""

    def __init__(self, bar: Bar):
        self.bar, self.began, self.tokens, self.steps = bar, time.monotonic(), 0, 0

    def step(self, rows: int, ended: int) -> None:
        """A pass in which `rows` answers got a token and `ended` of them their last."""
        self.tokens, self.steps = self.tokens + rows, self.steps + 1
        self.bar.advance(ended, **{"tokens/s": self.per_second(), "in flight": rows - ended})

    def per_second(self) -> float:
        """Tokens per second since this was made."""
        return self.tokens / max(time.monotonic() - self.began, 1e-9)

    def in_flight(self) -> float:
        """Rows at work in the mean pass."""
        return self.tokens / max(self.steps, 1)


def uniforms(seed: int, count: int) -> np.ndarray:
    """The `count` uniform numbers [0, 1) of a row, float64: Philox keyed by the row's seed of 128 bits, so that one
    row's numbers tell nothing of another's."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def draw(logits: Tensor, uniform: Tensor, temperature: float, top_p: float, top_k: int = 0) -> Tensor:
    """Token ids [B] from `logits` [B, V] and `uniform` [B] (float64): at `temperature` > 0, of the `top_k` likeliest
    tokens (0: of all; as in transformers and vLLM, equals of the last one are in) the nucleus `top_p`."""
    if 0 < top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[:, -1:], -torch.inf)
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
