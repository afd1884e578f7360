"""Answers in left-padded batches by transformers' own `generate` (torch module): for models and lengths that `slots`
does not take, and for sharded weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from spin_core.engines import Request
from spin_core.engines.decoding import OpenRow, Rate, Sampler
from spin_core.job import Bar
from spin_core.runtime import process_group


def answers(
    model: PreTrainedModel, requests: Sequence[Request], sampler: Sampler, size: int, rate: Rate
) -> list[OpenRow]:  # fmt: skip
    """The finished row of each request, in their order, `size` in a batch."""
    rows = [sampler.row(request) for request in requests]
    for start in range(0, len(rows), size):
        _generate(model, rows[start : start + size], sampler, rate)
    return rows


def answers_in_step(
    model: PreTrainedModel, requests: Sequence[Request], sampler: Sampler, size: int, rate: Rate
) -> list[OpenRow]:  # fmt: skip
    """This process's share of the finished rows, where the weights are sharded: every process must run every pass, so
    all have equally many batches, and within one they wait for the last (`synced_gpus`)."""
    world = process_group.world()
    mine = [sampler.row(request) for request in requests[process_group.rank() :: world]]
    idle = Rate(Bar(lambda event: None, "", 0, ""))
    for start in range(0, -(-len(requests) // world), size):
        if batch := mine[start : start + size]:
            _generate(model, batch, sampler, rate, in_step=True)
        else:
            _generate(model, [sampler.row(requests[-1])], sampler, idle, in_step=True)
    return mine


def _generate(
    model: PreTrainedModel, rows: Sequence[OpenRow], sampler: Sampler, rate: Rate, in_step: bool = False
) -> None:
    """Answers one left-padded batch by transformers' `generate`, until all its rows have ended."""
    prompts, pad = [row.request.prompt for row in rows], sampler.sampling.pad_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    # A model's own generation_config (repetition penalty, top_k, …) would otherwise fill what is left open here.
    model.generation_config = GenerationConfig(
        max_new_tokens=sampler.sampling.max_new_tokens, do_sample=False, pad_token_id=pad
    )
    model.generate(  # type: ignore[operator]
        ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList([_RowSampler(rows, sampler, rate)]),
        stopping_criteria=StoppingCriteriaList([_Ended(rows)]),
        synced_gpus=in_step,
    )


class _RowSampler(LogitsProcessor):
    """Draws for the rows that go on. `generate` then takes the arg max of what is returned: 0 at the drawn token (the
    pad token where the row has ended), −inf elsewhere."""

    def __init__(self, rows: Sequence[OpenRow], sampler: Sampler, rate: Rate):
        self.rows, self.sampler, self.rate = rows, sampler, rate

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        going = [i for i, row in enumerate(self.rows) if not row.finish]
        at_work = [self.rows[i] for i in going]
        self.sampler.draw(at_work, scores[torch.tensor(going, device=scores.device)])
        self.rate.step(len(at_work), sum(bool(row.finish) for row in at_work))
        drawn = torch.full((len(self.rows), 1), self.sampler.sampling.pad_id)
        drawn[going, 0] = torch.tensor([row.tokens[-1] for row in at_work])
        scores.fill_(-torch.inf).scatter_(-1, drawn.to(scores.device), 0.0)
        return scores


class _Ended(StoppingCriteria):
    def __init__(self, rows: Sequence[OpenRow]):
        self.rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Tensor:
        return torch.tensor([bool(row.finish) for row in self.rows], device=input_ids.device)
