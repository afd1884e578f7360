"""Answers from a fixed number of slots: a row that has ended gives its slot to the next prompt (torch module).

Keys and values lie in one preallocated block per layer, row by row from column 0, and are written in place, so no pass
copies what is there already, and none computes padding or rows that have ended. A prompt is computed but for its last
token, with which the row joins the others' steps; what all prompts begin with is computed once. Decoding reads grouped
keys as they are, without a copy per query head. What it is *not*: no fall-back; `unfit` says for which models and
lengths it would be wrong, and `transformers_engine` runs those by transformers' own `generate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from spin_core.engines import Request
from spin_core.engines.decoding import OpenRow, Rate, Sampler
from spin_core.modeling import attention
from spin_core.modeling.logprobs import HALF, attention_cut, differs, micro_batches

NAME = "spinloop_slots"
"""What `set_attn_implementation` takes for SDPA that reads grouped keys without repeating them."""

PREFILL_TOKENS = 2048
"""Prompt tokens in one pass, padding included (one prompt at least). Matrix products are near their best on a CPU from
64 tokens on; more is for GPUs, and bounds what one pass needs in memory."""


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, columns, width of a head]; `slots` says where a pass writes."""

    keys: Any
    values: Any

    def __init__(self, slots: Slots):
        super().__init__()
        self.slots = slots

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros, as what is masked is still multiplied: by 0, which a NaN of unwritten memory would survive.
        shape = (self.slots.size, key_states.shape[1], self.slots.columns)
        self.keys = key_states.new_zeros(*shape, key_states.shape[-1])
        self.values = value_states.new_zeros(*shape, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        seen = []
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            rows = store[self.slots.rows]  # a view
            if isinstance(self.slots.written, slice):
                rows[:, :, self.slots.written] = new
            else:
                rows[self.slots.every, :, self.slots.written] = new[:, :, 0]
            seen.append(rows[:, :, : self.slots.width])
        return seen[0], seen[1]

    def get_seq_length(self) -> int:
        return self.slots.width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.slots.width, 0

    def get_max_length(self) -> int:
        return self.slots.columns


class Slots(Cache):
    """`size` rows of at most `columns` tokens. Rows at work are always the first; the caller knows how many."""

    layers: list[Any]
    rows: slice
    every: Tensor
    written: slice | Tensor
    width: int

    def __init__(self, model: PreTrainedModel, size: int, columns: int):
        make_layer: Any = partial(_Layer, self)  # called for each layer when it first writes
        super().__init__(layer_class_to_replicate=make_layer)
        self.model, self.size, self.columns = model, size, columns
        self.shared: list[tuple[Tensor, Tensor]] = []
        self.prefix = 0

    def share(self, tokens: list[int]) -> None:
        """Computes what every prompt begins with, before the first enters."""
        self._fill(0, [tokens])
        self.prefix = len(tokens)
        self.shared = [
            (layer.keys[:1, :, : len(tokens)].clone(), layer.values[:1, :, : len(tokens)].clone())
            for layer in self.layers
        ]

    def enter(self, first: int, prompts: Sequence[list[int]]) -> None:
        """Puts prompts, longest first, into the slots from `first` on, all but each one's last token."""
        for layer, (keys, values) in zip(self.layers, self.shared, strict=False):
            layer.keys[first : first + len(prompts), :, : self.prefix] = keys
            layer.values[first : first + len(prompts), :, : self.prefix] = values
        own = [prompt[self.prefix : -1] for prompt in prompts]
        for part in micro_batches([len(tokens) for tokens in own], PREFILL_TOKENS, packed=False):
            self._fill(first + part[0], [own[n] for n in part])

    def _fill(self, first: int, rows: list[list[int]]) -> None:
        """Tokens behind the prefix. They are padded on the right: what is computed there is overwritten or masked."""
        longest = max(map(len, rows))
        if not longest:
            return
        device = self.model.device
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        places = torch.arange(self.prefix, self.prefix + longest, device=device)
        self.rows, self.written = slice(first, first + len(rows)), slice(self.prefix, self.prefix + longest)
        self.width = self.prefix + longest
        self.model.base_model(
            input_ids=ids, attention_mask=self._mask(places[None, :].expand(len(rows), -1)),
            position_ids=places[None, :].expand(len(rows), -1), past_key_values=self, use_cache=True,
        )  # fmt: skip

    def step(self, tokens: list[int], places: list[int]) -> Tensor:
        """Logits [rows, vocab_size] behind each row's `tokens`, which are put at `places`."""
        device, self.rows, self.width = self.model.device, slice(0, len(tokens)), max(places) + 1
        self.every = torch.arange(len(tokens), device=device)
        self.written = torch.tensor(places, device=device)
        own = self.written[:, None]
        out = self.model(
            input_ids=torch.tensor(tokens, device=device)[:, None], attention_mask=self._mask(own),
            position_ids=own, past_key_values=self, use_cache=True,
        )  # fmt: skip
        logits: Tensor = out.logits[:, -1]
        return logits

    def _mask(self, places: Tensor) -> Tensor:
        """[rows, 1, queries, width] to be added to scores: which columns a query at `places` [rows, queries] sees.
        Numbers and not booleans, as attention that a model's own file writes out adds it."""
        dtype = self.model.dtype
        unseen = torch.arange(self.width, device=places.device) > places[:, None, :, None]
        return torch.zeros(unseen.shape, dtype=dtype, device=places.device).masked_fill(unseen, torch.finfo(dtype).min)

    def move(self, source: list[int], target: list[int]) -> None:
        """Copies the rows `source` over the rows `target`."""
        if source:
            to, of = (torch.tensor(part, device=self.model.device) for part in (target, source))
            for layer in self.layers:
                for store in (layer.keys, layer.values):
                    store[to, :, : self.width] = store[of, :, : self.width]


def unfit(model: PreTrainedModel, longest: int) -> str:
    """Why slots would be wrong for this model and sequences of `longest` tokens, or empty. The cache that transformers
    would make says what the layers keep; the rest is tried, once, on a few tokens against the model's own logits."""
    if why := _keeps_other(model, longest):
        return why
    if model not in _tried:
        plain = torch.stack([model(torch.tensor([row], device=model.device)).logits[0, -1] for row in _PROBE])
        rough = model.dtype in HALF
        _tried[model] = differs(partial(_probe, model), plain.float().log_softmax(-1), rough)
    return _tried[model]


_tried: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()


def _keeps_other(model: PreTrainedModel, longest: int) -> str:
    """What a layer keeps that is not all keys and values, or empty."""
    for layer in DynamicCache(config=model.config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"a layer keeps more than keys and values ({type(layer).__name__})"
        window = getattr(layer, "sliding_window", longest)
        if window < longest:
            return f"its sliding window of {window} is shorter than a sequence of {longest}"
    return attention_cut(model, longest)  # of models whose cache does not know


_PROBE = [[1, 2, 3, 5, 8, 13, 21, 34, 3], [1, 2, 4, 9, 16, 25, 2, 7], [1, 2, 30, 20, 10, 6]]
"""Token ids that every vocabulary has: a beginning in common, then three ways on, the last two tokens in steps."""


def _probe(model: PreTrainedModel) -> Tensor:
    """Log-probs of all tokens behind each row of the probe, in slots that held other rows before."""
    with _attention(model):
        slots = Slots(model, 4, max(map(len, _PROBE)))
        slots.share(_PROBE[0][:2])
        slots.enter(0, [_PROBE[0][::-1], *(row[:-1] for row in _PROBE)])
        slots.step([row[-2] for row in (_PROBE[0], *_PROBE)], [len(row) - 2 for row in (_PROBE[0], *_PROBE)])
        slots.move([3], [0])
        order = [_PROBE[2], _PROBE[0], _PROBE[1]]
        logits = slots.step([row[-1] for row in order], [len(row) - 1 for row in order])
    return logits[[1, 2, 0]].float().log_softmax(-1)


@contextmanager
def _attention(model: PreTrainedModel) -> Iterator[None]:
    """The model with `NAME` where it has SDPA; other attention (written out, with soft-caps or sinks) stays."""
    before = model.config._attn_implementation
    try:
        if before in ("sdpa", attention.NAME):
            model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(before)


def answers(
    model: PreTrainedModel, requests: Sequence[Request], sampler: Sampler, size: int, rate: Rate
) -> list[OpenRow]:  # fmt: skip
    """The finished row of each request, in their order; the first enter first, at most `size` at once."""
    rows = [sampler.row(request) for request in requests]
    longest = max(len(request.prompt) for request in requests)
    slots = Slots(model, min(size, len(rows)), longest + sampler.sampling.max_new_tokens - 1)
    waiting, at_work = list(rows[::-1]), list[OpenRow]()
    with _attention(model):
        # What all prompts begin with is what the two begin with that are furthest apart in order.
        prompts = [request.prompt[:-1] for request in requests]
        apart = zip(min(prompts), max(prompts), strict=False)
        if shared := [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], apart)]:
            slots.share(shared)
        while waiting or at_work:
            if waiting and len(at_work) < slots.size:
                entering = [waiting.pop() for _ in range(min(len(waiting), slots.size - len(at_work)))]
                slots.enter(len(at_work), [row.request.prompt for row in entering])
                at_work += entering
            places = [len(row.request.prompt) + len(row.tokens) - 1 for row in at_work]
            logits = slots.step([(row.tokens or row.request.prompt)[-1] for row in at_work], places)
            sampler.draw(at_work, logits)
            before = len(at_work)
            at_work = _leave(slots, at_work)
            rate.step(before, before - len(at_work))
    return rows


def _leave(slots: Slots, rows: list[OpenRow]) -> list[OpenRow]:
    """The rows that go on, moved together: the last ones into the slots of those that ended."""
    left = sum(not row.finish for row in rows)
    target = [i for i, row in enumerate(rows[:left]) if row.finish]
    source = [i for i, row in enumerate(rows) if i >= left and not row.finish]
    slots.move(source, target)
    for to, of in zip(target, source, strict=True):
        rows[to] = rows[of]
    return rows[:left]


def _folded(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, **more: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """SDPA as transformers' models call it. In a step the query heads of a group stand in for query places."""
    rows, heads, places, _ = query.shape
    groups = key.shape[1]
    if places > 1 or heads == groups or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **more)
    query = query.reshape(rows, groups, heads // groups, -1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, _folded)
AttentionMaskInterface.register(NAME, sdpa_mask)
