"""A model as what SPIN needs of it: log p(answer | prompt) of groups of sequences (torch module).

Scoring and training share this one forward pass. It is *packed* (each prompt once, no padding) and takes logits only
where a label is, for every model that allows it; whether a model does is not looked up in a list but tried, on the
model itself, against its own plain logits. What it is *not*: no loss, no optimiser, no loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spin_core.config.choices import Precision
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput, one_line
from spin_core.modeling import attention
from spin_core.modeling.chunked_logps import Head, head_of, label_logps
from spin_core.modeling.collate import Groups, Tokens
from spin_core.modeling.loss import token_logps
from spin_core.modeling.packing import Batch, Group, pack, packable, pad_groups, tokens_of
from spin_core.runtime import process_group

PROBE = ((24, (12, 9)), (15, (7, 10)))
"""Tokens of the probe's two prompts and of their answers."""
FINE, ROUGH = 3e-4, 5e-2
"""Nats per label by which two ways of computing it may differ: the largest difference in float32 (rounding was 1e-5 on
a 135M model; a foreign mask changes tenths), the mean in half precision, which quantised models and flash-attn have."""
HALF = (torch.bfloat16, torch.float16)


class Policy(torch.nn.Module):
    """`model` with the form that its batches have. Call it with what `batch` made."""

    def __init__(
        self, model: PreTrainedModel, pad_id: int, precision: Precision, kernel: str | None = None,
        head: Head | None = None,
    ):  # fmt: skip
        super().__init__()
        self.model, self.pad_id, self.precision, self.kernel, self.head = model, pad_id, precision, kernel, head

    @property
    def packed(self) -> bool:
        """Whether each prompt is computed once; else sequences are padded."""
        return self.kernel is not None

    def batch(self, groups: Sequence[Group]) -> Batch:
        """The groups as one forward pass reads them."""
        if self.kernel and all(map(packable, groups)):
            return pack(groups, self.kernel)
        return pad_groups(groups, self.pad_id)

    def cost(self, group: Group) -> int:
        """Tokens that the group puts into a forward pass, beside groups that are no longer."""
        return tokens_of(group) if self.packed else len(group) * max(map(len, group))

    def passes(
        self, groups: Sequence[Group] | Mapping[int, Group], budget: int, processes: int, in_step: bool
    ) -> list[list[tuple[list[int], bool]]]:
        """The forward passes of each process over groups (numbered, or in order): which numbers, and whether the pass
        counts.

        Sorted by length, longest first, as like with like needs little padding. Each group goes to the process that has
        the fewest tokens so far. `in_step`: all have equally many passes, so that none waits for ever; where a process
        has nothing left, a pass of the shortest group, which does not count, keeps it in step with the others.
        """
        costs = self.costs(groups)
        order = sorted(costs, key=lambda number: (-costs[number], number))
        hands = process_group.deal([costs[number] for number in order], processes)
        owned = [[order[place] for place in hand] for hand in hands]
        cuts = [micro_batches([costs[number] for number in own], budget, self.packed) for own in owned]
        rounds = max(map(len, cuts)) if in_step else 0
        return [
            [([own[n] for n in part], True) for part in cut] + [([order[-1]], False)] * (rounds - len(cut))
            for own, cut in zip(owned, cuts, strict=True)
        ]

    def autocast(self) -> Any:
        """The precision's autocast. Around several passes it casts each weight that is trained only once; of a
        sharded model it must not, or each process would hold all weights in bfloat16."""
        if self.precision == "float32":
            return nullcontext()
        kept = not getattr(self.model, "sharded", False)
        return torch.autocast(self.model.device.type, torch.bfloat16, cache_enabled=kept)

    def forward(self, batch: Batch, per_label: bool = False) -> Tensor:
        """log p(answer | prompt) of each sequence, [S], in nats: the sum over its labels, float32 at least. With
        `per_label` those of the labels, [N], without the precision's autocast: to compare ways of computing them."""
        head, batch = self.head, batch.to(self.model.device)
        compute = partial(_head_logps, self.model, batch, head) if head else partial(_plain_logps, self.model, batch)
        # A sharded model has all that it reads gathered in its own forward pass only.
        inside: Any = getattr(self.model, "inside", None) if head else None
        with nullcontext() if per_label else self.autocast():
            logps: Tensor = inside(compute) if inside else compute()
        return logps if per_label else logps.new_zeros(batch.sequences).index_add(0, batch.owners, logps)

    def costs(self, groups: Sequence[Group] | Mapping[int, Group]) -> dict[int, int]:
        """The cost of each group, by its number."""
        if isinstance(groups, Groups):
            lengths = groups.lengths()
            costs = groups.packed() if self.packed else groups.there().sum(axis=1) * lengths.max(axis=1)
            return dict(enumerate(costs.tolist()))
        numbered = groups.items() if isinstance(groups, Mapping) else enumerate(groups)
        return {number: self.cost(group) for number, group in numbered}

    def settle(self, longest: int, runtime: Runtime, note: Callable[[str], None] = lambda text: None) -> Policy:
        """Finds out how sequences of at most `longest` tokens can be computed; says by `note` where they cannot be
        packed. Of several processes each must call it. Gives itself.

        Raises BadInput where `longest` is beyond the model's context, or the requested attention cannot run.
        """
        model = self.model
        room = getattr(model.config, "max_position_embeddings", None)
        if room and longest > room:
            raise BadInput(
                f"the longest prompt and answer have {longest} tokens, the model's context is {room}; lower max_length"
            )
        trained = any(parameter.requires_grad for parameter in model.parameters())
        attention.require(runtime.attn_implementation, model.device, trained, self.precision)
        self.kernel = self.head = None
        padded, problems = pad_groups(_probe_groups(model), self.pad_id), []
        plain = self._probe(padded)
        self.head = head_of(model)
        if self.head and (why := self._differs(padded, plain)):
            self.head = None
            problems.append(f"all its logits are computed, as its output layer is not just linear ({why})")
        kernel = runtime.attn_implementation if runtime.packing else None
        if kernel and (why := self._cannot_pack(kernel, plain, longest)):
            kernel = None
            problems.append(f"it is padded instead of packed, as {why}")
        self.kernel = kernel
        if problems:
            name = type(model).__name__.removeprefix("FSDP")
            note(f"{name}: {'; '.join(problems)}. The result is the same, in more time.")
        return self

    def _cannot_pack(self, kernel: str, plain: Tensor, longest: int) -> str:
        """Why packing is impossible, or empty. Leaves the model with the attention that it is to be used with."""
        model = self.model
        # What the probe is too short to see: where attention is cut off, or depends on the place in the packed row.
        if why := attention_cut(model, longest):
            return why
        if getattr(model.config, "attn_temperature_tuning", None):
            return "its attention is scaled by the place in the row"
        before = model.config._attn_implementation
        batch = pack(_probe_groups(model), kernel)
        try:
            model.set_attn_implementation(attention.NAME)
        except (ValueError, ImportError, KeyError) as error:
            return f"it does not take another attention ({one_line(error)})"
        why = self._differs(batch, plain)
        if why:
            model.set_attn_implementation(before)
        return why

    def _differs(self, batch: Batch, plain: Tensor) -> str:
        """Empty where the probe's log-probs come out as `plain` in every process; else what is wrong."""
        flash = getattr(batch.inputs.get("layout"), "kernel", "") == "flash_attention_2"
        why = differs(partial(self._probe, batch), plain, flash or self.model.dtype in HALF)
        return next(filter(None, process_group.gather(why)), "")

    @torch.no_grad()
    def _probe(self, batch: Batch) -> Tensor:
        logps: Tensor = self(batch, True)  # called, not `forward`: hooks gather weights that are sharded
        return logps


def differs(compute: Callable[[], Tensor], plain: Tensor, rough: bool) -> str:
    """Empty where the log-probs that `compute` gives are `plain`; else what is wrong."""
    try:
        difference = (compute() - plain).abs()
    except attention.CannotPack as error:
        return str(error)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError) as error:
        # Whatever an architecture does with arguments that it was not written for: it is then run without them.
        return f"it fails with {type(error).__name__} ({one_line(error, 120)})"
    off = float(difference.mean() if rough else difference.max())
    return "" if off <= (ROUGH if rough else FINE) else f"its log-probs are off by {off:.2g} nats"


def attention_cut(model: PreTrainedModel, longest: int) -> str:
    """What of the model's attention is shorter than a sequence of `longest` tokens, or empty."""
    for name, what in (("sliding_window", "sliding window"), ("attention_chunk_size", "attention chunk")):
        size = getattr(model.config, name, None)
        if size and longest > size:
            return f"its {what} of {size} is shorter than a sequence of {longest}"
    return ""


def micro_batches(costs: Sequence[int], budget: int, packed: bool) -> list[list[int]]:
    """Groups 0 … n−1 of the given costs (longest first) as forward passes of at most `budget` tokens, one at least.

    Padded, every group costs as much as the longest beside it.
    """
    cut: list[list[int]] = []
    spent = 0
    for number, cost in enumerate(costs):
        cost = cost if packed or not cut else max(cost, costs[cut[-1][0]])
        if not cut or spent + cost > budget:
            cut.append([])
            spent, cost = 0, costs[number]
        cut[-1].append(number)
        spent += cost
    return cut


def _probe_groups(model: PreTrainedModel) -> list[list[Tokens]]:
    """Two prompts with two answers each, of random tokens, the same every time."""
    draws, groups = np.random.default_rng(0), []
    size: Any = model.get_input_embeddings().num_embeddings  # type: ignore[union-attr]
    for prompt, answers in PROBE:
        shared = draws.integers(0, size, prompt)
        groups.append([Tokens(np.r_[shared, draws.integers(0, size, n)].astype(np.int32), prompt) for n in answers])
    return groups


def _plain_logps(model: PreTrainedModel, batch: Batch) -> Tensor:
    """log p of each label [N] from the model's own logits, of all positions."""
    logits = model(**batch.inputs, use_cache=False).logits.flatten(0, 1)
    return token_logps(logits[None, batch.predictors], batch.targets[None])[0]


def _head_logps(model: PreTrainedModel, batch: Batch, head: Head) -> Tensor:
    """log p of each label [N], logits only where a label is."""
    states = model.base_model(**batch.inputs, use_cache=False)[0].flatten(0, 1)
    return label_logps(states.index_select(0, batch.predictors), batch.targets, head)
