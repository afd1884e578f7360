"""Sampling with transformers' models: in slots that prompts take in turn, or, where a model does not allow it, in
left-padded batches by transformers' `generate`; each row draws from its own random numbers.

What holds: the answer of a row is a function of model, prompt, settings and the row's seed. On CPU it was the same
tokens for every batch size and shard tried (tests); what can differ is float rounding of the logits between batch
shapes (about 1e-6), which changes an answer only where a draw falls that close to the border between two tokens, or
two greedy logits are that close. On GPUs in bfloat16 that is not rare: there the same batch gives the same answers,
another batch size mostly the same ones. Devices are not compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from spin_core.engines import Answer, Request, Sampling
from spin_core.engines.decoding import Rate, Row, Sampler
from spin_core.engines.slots import answers, unfit
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Bar, Job
from spin_core.modeling.loading import apply_threads, load_tokenizer, process_device, source_dtype
from spin_core.modeling.opponent import opponent
from spin_core.runtime import process_group


def sample(model_path: Path, requests: list[Request], sampling: Sampling, job: Job, label: str) -> list[Answer]:
    """One answer for each request, in the order of the requests. Raises BadInput for a prompt that leaves the model
    no room.

    Puts into `job.figures`: `tokens_per_second` (drawn, while sampling), `in_flight_mean` (rows at work in the mean
    pass), both of the last call in this job, and `load_seconds` (of the model, all calls; 0 where it was in memory).
    """
    apply_threads(job.runtime)
    device, parts = process_device(job.runtime), job.runtime.compute.in_parts
    dtype = torch.float32 if device.type == "cpu" else source_dtype(model_path)
    began = time.monotonic()
    model = opponent(model_path, device, dtype, parts=parts)
    sampler = Sampler(sampling, load_tokenizer(model_path) if sampling.stop else None)
    job.figures["load_seconds"] = job.figures.get("load_seconds", 0.0) + time.monotonic() - began
    _check_lengths(model, requests, sampling)
    # Longest first: what does not fit in memory fails at once, and the time left is not underestimated.
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].id), reverse=True)
    mine = order[process_group.rank() :: process_group.world()]
    with job.progress(label, len(mine), "prompts") as bar, torch.inference_mode(not parts), torch.no_grad():
        rate = Rate(bar)
        try:
            if parts:
                rows = _in_step(model, [requests[i] for i in order], sampler, job, rate)
            else:
                rows = _answers(model, [requests[i] for i in mine], sampler, job, rate)
        except torch.OutOfMemoryError:
            size = job.runtime.generate_batch
            raise StageFailed(
                f"generate: the GPU is out of memory; lower runtime.generate_batch (now {size})."
            ) from None
    job.engine = f"transformers {transformers.__version__}, torch {torch.__version__}"
    own = [
        [i, row.tokens, row.finish, row.logps if sampling.logprobs else None] for i, row in zip(mine, rows, strict=True)
    ]
    said = process_group.gather([own, rate.per_second(), rate.in_flight()])
    job.figures |= {"tokens_per_second": sum(one[1] for one in said), "in_flight_mean": sum(one[2] for one in said)}
    found = {i: Answer(requests[i].id, *answer) for one in said for i, *answer in one[0]}
    return [found[i] for i in range(len(requests))]


def _in_step(model: PreTrainedModel, requests: list[Request], sampler: Sampler, job: Job, rate: Rate) -> list[Row]:
    """This process's share of the finished rows, where the weights are in parts: every process must run every pass, so
    all have equally many batches, and within one they wait for the last (`synced_gpus`)."""
    size, world = job.runtime.generate_batch, process_group.world()
    job.note("Answers come from transformers' generate in padded batches, which is slower: the model is in parts.")
    mine = [sampler.row(request) for request in requests[process_group.rank() :: world]]
    idle = Rate(Bar(lambda event: None, "", 0, ""))
    for start in range(0, -(-len(requests) // world), size):
        if batch := mine[start : start + size]:
            _generate(model, batch, sampler, rate, in_step=True)
        else:
            _generate(model, [sampler.row(requests[-1])], sampler, idle, in_step=True)
    return mine


def _answers(model: PreTrainedModel, requests: list[Request], sampler: Sampler, job: Job, rate: Rate) -> list[Row]:
    """The finished rows of requests that come longest first."""
    size, new = job.runtime.generate_batch, sampler.sampling.max_new_tokens
    if not requests:
        return []
    why = unfit(model, len(requests[0].prompt) + new)
    if not why:
        return answers(model, requests, sampler, size, rate)
    job.note(f"Answers come from transformers' generate in padded batches, which is slower: {why}.")
    rows = [sampler.row(request) for request in requests]
    for start in range(0, len(rows), size):
        _generate(model, rows[start : start + size], sampler, rate)
    return rows


def _check_lengths(model: PreTrainedModel, requests: list[Request], sampling: Sampling) -> None:
    room = getattr(model.config, "max_position_embeddings", None)
    for request in requests:
        if not request.prompt:
            raise BadInput(f"row {request.id}: its prompt has no tokens under the model's chat template.")
        if room and len(request.prompt) + sampling.max_new_tokens > room:
            raise BadInput(
                f"row {request.id}: its prompt of {len(request.prompt)} tokens and {sampling.max_new_tokens} new ones "
                f"do not fit into the model's context of {room}; lower chat.max_prompt_length or the max_new_tokens."
            )


def _generate(model: PreTrainedModel, rows: Sequence[Row], sampler: Sampler, rate: Rate, in_step: bool = False) -> None:
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
        logits_processor=LogitsProcessorList([RowSampler(rows, sampler, rate)]),
        stopping_criteria=StoppingCriteriaList([_Ended(rows)]),
        synced_gpus=in_step,
    )


class RowSampler(LogitsProcessor):
    """Draws for the rows that go on. `generate` then takes the arg max of what is returned: 0 at the drawn token (the
    pad token where the row has ended), −inf elsewhere."""

    def __init__(self, rows: Sequence[Row], sampler: Sampler, rate: Rate):
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
    def __init__(self, rows: Sequence[Row]):
        self.rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Tensor:
        return torch.tensor([bool(row.finish) for row in self.rows], device=input_ids.device)
