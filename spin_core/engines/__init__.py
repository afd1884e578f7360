"""What samples answers. One protocol: `sample(model_path, requests, sampling, job, label) -> answers`, requests and
answers as token ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Request:
    """One prompt to answer. `seed` decides every draw for this row, whatever batch or shard it is in."""

    id: str
    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class Sampling:
    """`temperature` 0 is greedy. Generation ends at any of `stop_ids`, or after `max_new_tokens`."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: frozenset[int]
    pad_id: int


@dataclass(frozen=True)
class Answer:
    """`token_ids` as sampled, the stop token included. `finish`: `stop`, or `length` when cut."""

    id: str
    token_ids: list[int]
    finish: str
