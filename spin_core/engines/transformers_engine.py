"""Sampling with transformers' `generate`: left-padded, length-sorted batches; each row draws from its own random
numbers.

What holds: the answer of a row is a function of model, prompt, settings and the row's seed. On CPU it was the same
tokens for every batch size and shard tried (tests); what can differ is float rounding of the logits between batch
shapes (about 1e-6), which changes an answer only where a draw falls that close to the border between two tokens, or
two greedy logits are that close. On GPUs in bfloat16 that is not rare: there the same batch gives the same answers,
another batch size mostly the same ones. Devices are not compared.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from spin_core.engines import Answer, Request, Sampling
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Bar, Job
from spin_core.models import apply_threads, opponent, pick_device, source_dtype


def sample(model_path: Path, requests: list[Request], sampling: Sampling, job: Job, label: str) -> list[Answer]:
    """One answer for each request, in the order of the requests. Raises BadInput for a prompt that leaves the model
    no room."""
    apply_threads(job.runtime)
    device = pick_device(job.runtime)
    dtype = torch.float32 if device.type == "cpu" else source_dtype(model_path)
    model = opponent(model_path, device, dtype)
    _check_lengths(model, requests, sampling)
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].id))
    answers: dict[int, Answer] = {}
    size = job.runtime.generate_batch
    with job.progress(label, len(requests), "prompts") as bar, torch.inference_mode():
        rate = Rate(bar)
        # Longest first: a batch that does not fit in memory fails at once, and the time left is not underestimated.
        for start in range(0, len(order), size):
            batch = order[::-1][start : start + size]
            rows = [requests[i] for i in batch]
            try:
                tokens = _generate(model, rows, sampling, rate)
            except torch.OutOfMemoryError:
                raise StageFailed(
                    f"generate: the GPU is out of memory; lower runtime.generate_batch (now {size})."
                ) from None
            answers.update({i: _cut(row, ids, sampling) for i, row, ids in zip(batch, rows, tokens, strict=True)})
            bar.advance(len(batch), **rate.figures())
    return [answers[i] for i in range(len(requests))]


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


def _generate(model: PreTrainedModel, rows: list[Request], sampling: Sampling, rate: Rate) -> list[list[int]]:
    """New tokens of each row, up to the longest of the batch."""
    device = next(model.parameters()).device
    width = max(len(row.prompt) for row in rows)
    ids = torch.tensor([[sampling.pad_id] * (width - len(row.prompt)) + row.prompt for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows], device=device)
    # A model's own generation_config (repetition penalty, top_k, …) would otherwise fill what is left open here.
    model.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(sampling.stop_ids),
        pad_token_id=sampling.pad_id,
    )
    processors: list[LogitsProcessor] = [rate.of_batch(sampling.stop_ids, width)]
    if sampling.temperature > 0:
        processors.append(RowSampler(rows, sampling))
    out = model.generate(  # type: ignore[operator]
        ids, attention_mask=mask, logits_processor=LogitsProcessorList(processors)
    )
    new: list[list[int]] = out[:, width:].tolist()
    return new


def _cut(row: Request, tokens: list[int], sampling: Sampling) -> Answer:
    for i, token in enumerate(tokens):
        if token in sampling.stop_ids:
            return Answer(row.id, tokens[: i + 1], "stop")
    return Answer(row.id, tokens, "length")


class RowSampler(LogitsProcessor):
    """Draws each row's next token with the row's own uniform numbers, by inverting the cumulative distribution.

    `generate` then takes the arg max of what is returned: 0 at the drawn token, −inf elsewhere. One number per row
    and step, from Philox keyed by the row's seed, so neither the batch nor a global generator enters.
    """

    def __init__(self, rows: list[Request], sampling: Sampling):
        streams = (np.random.Generator(np.random.Philox(key=row.seed)) for row in rows)
        self.uniform = torch.from_numpy(np.stack([stream.random(sampling.max_new_tokens) for stream in streams]))
        self.sampling = sampling
        self.step = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # float64: a float32 cumulative sum over 49k tokens is off by up to 1e-4, as much as many a token's probability.
        probs = torch.softmax(scores.double() / self.sampling.temperature, dim=-1)
        if self.sampling.top_p < 1:
            ranked, index = probs.sort(descending=True, stable=True)
            outside = ranked.cumsum(-1) - ranked >= self.sampling.top_p
            probs = probs.scatter(-1, index, ranked.masked_fill(outside, 0.0))
        cumulative = probs.cumsum(-1)
        aim = self.uniform[:, self.step : self.step + 1].to(scores.device) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, aim, right=True).clamp(max=scores.shape[-1] - 1)
        self.step += 1
        scores.fill_(-torch.inf).scatter_(-1, drawn, 0.0)
        return scores


class Rate(LogitsProcessor):
    """Counts the tokens of rows that have not ended, and shows tokens per second while a batch is at work."""

    def __init__(self, bar: Bar):
        self.bar, self.began, self.tokens = bar, time.monotonic(), 0

    def of_batch(self, stop_ids: frozenset[int], width: int) -> Rate:
        self.stop, self.width = torch.tensor(sorted(stop_ids)), width
        return self

    def figures(self) -> dict[str, float]:
        return {"tokens/s": self.tokens / max(time.monotonic() - self.began, 1e-9)}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        ended = torch.isin(input_ids[:, self.width :], self.stop.to(input_ids.device)).any(-1)
        self.tokens += int((~ended).sum())
        self.bar.advance(0, **self.figures())
        return scores
