"""Answers in left-padded batches by transformers' own `generate` (torch module): for models and lengths that `slots`
does not take, and for sharded weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from spin_core.engines import Request
from spin_core.engines.decoding import OpenRow, Rate, Sampler
from spin_core.job import Bar
from spin_core.runtime import process_group


def answers(
    model: PreTrainedModel, requests: Sequence[Request], sampler: Sampler, size: int, rate: Rate, in_step: bool
) -> list[OpenRow]:
    """The finished row of each request, in their order, `size` in a batch.

    `in_step`: of this process's share of them, where the weights are sharded. Every process must run every pass, so all
    have equally many batches, and within one they wait for the last (`synced_gpus`).
    """
    own, world = (process_group.rank(), process_group.world()) if in_step else (0, 1)
    rows = [sampler.row(request) for request in requests[own::world]]
    idle = Rate(Bar(lambda event: None, "", 0, ""))
    for start in range(0, -(-len(requests) // world), size):
        if batch := rows[start : start + size]:
            _generate(model, batch, sampler, rate, in_step)
        else:
            _generate(model, [sampler.row(requests[-1])], sampler, idle, in_step)
    return rows


def _generate(model: PreTrainedModel, rows: Sequence[OpenRow], sampler: Sampler, rate: Rate, in_step: bool) -> None:
    """Answers one left-padded batch, until all its rows have ended."""
    prompts, pad = [row.request.prompt for row in rows], sampler.sampling.pad_id
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)

    def drawn(input_ids: Tensor, scores: Tensor) -> Tensor:
        """Draws for the rows that go on. `generate` then takes the arg max of what is returned: 0 at the drawn token
        (the pad token where the row has ended), −inf elsewhere."""
        going = [i for i, row in enumerate(rows) if not row.finish]
        at_work = [rows[i] for i in going]
        sampler.draw(at_work, scores[torch.tensor(going, device=scores.device)])
        rate.step(len(at_work), sum(bool(row.finish) for row in at_work))
        tokens = torch.full((len(rows), 1), pad)
        tokens[going, 0] = torch.tensor([row.tokens[-1] for row in at_work])
        return scores.fill_(-torch.inf).scatter_(-1, tokens.to(scores.device), 0.0)

    def ended(input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.tensor([bool(row.finish) for row in rows], device=input_ids.device)

    # A model's own generation_config (repetition penalty, top_k, …) would otherwise fill what is left open here.
    model.generation_config = GenerationConfig(
        max_new_tokens=sampler.sampling.max_new_tokens, do_sample=False, pad_token_id=pad
    )
    model.generate(  # type: ignore[operator]
        ids,
        attention_mask=mask,
        logits_processor=LogitsProcessorList([drawn]),
        stopping_criteria=StoppingCriteriaList([ended]),
        synced_gpus=in_step,
    )
