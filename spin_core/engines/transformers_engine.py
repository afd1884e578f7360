"""The engine `transformers`: in slots that prompts take in turn (`slots`), or, where a model does not allow it, in
left-padded batches by transformers' `generate` (`padded`); each row draws from its own random numbers.

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
from typing import TYPE_CHECKING

from spin_core.config.runtime import Runtime
from spin_core.engines import Answer, Footprint, Request, Sampling, versions
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Job

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spin_core.engines.decoding import OpenRow, Rate, Sampler

PACKAGES: tuple[str, ...] = ("transformers", "torch")
LAYER_SECONDS = 8e-4
SPREADS = False
KEPT = ""


def interpreter(runtime: Runtime) -> str:
    """The one that calls."""
    return ""


def process(max_tokens: int, has_stop_strings: bool) -> str:
    """Any process will do."""
    return ""


def check(runtime: Runtime) -> None:
    """Nothing can be missing."""


def footprint(runtime: Runtime) -> Footprint:
    """Each process has a slot for every prompt of a batch."""
    world = runtime.compute.world
    return Footprint(world if world > 1 else runtime.workers, runtime.generate_batch)


def doctor() -> None:
    """Its packages are spinloop's own."""


def sample(
    model_path: Path, requests: Sequence[Request], sampling: Sampling, job: Job, label: str
) -> list[Answer]:  # fmt: skip
    """See `Engine`. Raises BadInput for a prompt that leaves the model no room.

    Figures: tokens_per_second (drawn, while sampling) and in_flight_mean (rows at work in the mean pass) are of the
    last call in this job, load_seconds of the model in all calls (0 where it was in memory).
    """
    import torch

    from spin_core.engines.decoding import Rate, Sampler
    from spin_core.modeling.loading import apply_threads, load_tokenizer, pick_device, source_dtype
    from spin_core.modeling.opponent import opponent
    from spin_core.runtime import process_group

    apply_threads(job.runtime)
    device, sharded = pick_device(job.runtime), job.runtime.compute.in_parts
    dtype = torch.float32 if device.type == "cpu" else source_dtype(model_path)
    began = time.monotonic()
    model = opponent(model_path, device, dtype, sharded=sharded)
    sampler = Sampler(sampling, load_tokenizer(model_path) if sampling.stop else None)
    job.figures["load_seconds"] = job.figures.get("load_seconds", 0.0) + time.monotonic() - began
    _check_lengths(model, requests, sampling)
    # Longest first: what does not fit in memory fails at once, and the time left is not underestimated.
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].id), reverse=True)
    mine = order[process_group.rank() :: process_group.world()]
    with job.progress(label, len(mine), "prompts") as bar, torch.inference_mode(not sharded), torch.no_grad():
        rate = Rate(bar)
        try:
            rows = _rows(model, [requests[i] for i in (order if sharded else mine)], sampler, sharded, job, rate)
        except torch.OutOfMemoryError:
            raise StageFailed(
                f"generate: the GPU is out of memory; lower runtime.generate_batch (now {job.runtime.generate_batch})."
            ) from None
    job.engine = versions(PACKAGES)
    own = [[i, row.tokens, row.finish, row.logps or None] for i, row in zip(mine, rows, strict=True)]
    shares = process_group.gather([own, rate.per_second(), rate.in_flight()])
    _, speeds, flying = zip(*shares, strict=True)
    job.figures |= {"tokens_per_second": sum(speeds), "in_flight_mean": sum(flying)}
    answers = {i: Answer(requests[i].id, *answer) for share in shares for i, *answer in share[0]}
    return [answers[i] for i in range(len(requests))]


def _rows(
    model: PreTrainedModel, requests: list[Request], sampler: Sampler, sharded: bool, job: Job, rate: Rate
) -> list[OpenRow]:  # fmt: skip
    """The finished rows of requests that come longest first; where weights are `sharded`, this process's share."""
    from spin_core.engines import padded, slots

    if not requests:
        return []
    size, longest = job.runtime.generate_batch, len(requests[0].prompt) + sampler.sampling.max_new_tokens
    why = "the model is sharded" if sharded else slots.unfit(model, longest)
    if not why:
        return slots.answers(model, requests, sampler, size, rate)
    job.note(f"Answers come from transformers' generate in padded batches, which is slower: {why}.")
    return padded.answers(model, requests, sampler, size, rate, in_step=sharded)


def _check_lengths(model: PreTrainedModel, requests: Sequence[Request], sampling: Sampling) -> None:
    room = getattr(model.config, "max_position_embeddings", None)
    for request in requests:
        if not request.prompt:
            raise BadInput(f"row {request.id}: its prompt has no tokens under the model's chat template.")
        if room and len(request.prompt) + sampling.max_new_tokens > room:
            raise BadInput(
                f"row {request.id}: its prompt of {len(request.prompt)} tokens and {sampling.max_new_tokens} new ones "
                f"do not fit into the model's context of {room}; lower chat.max_prompt_length or the max_new_tokens."
            )
