"""What samples answers. One protocol: `sample(model_path, requests, sampling, job, label) -> answers`, requests and
answers as token ids. An engine runs in the stage's child process, under the interpreter that has it."""

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
    """How every request of a stage is answered. `temperature` 0 is greedy.

    Generation ends at any of `stop_ids` (not before `min_new_tokens` tokens), at the token that completes one of the
    strings `stop` in the decoded answer (not together with `min_new_tokens`), or after `max_new_tokens`. No prompt of
    the run has more than `max_prompt` tokens (0: not known).
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: frozenset[int]
    pad_id: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    max_prompt: int = 0


@dataclass(frozen=True)
class Answer:
    """`token_ids` as sampled, the stop token (or the tokens of a stop string) included. `finish`: `stop`, or `length`
    when cut. `logps`: with `Sampling.logprobs`, log p of each token under the model itself, in nats: at temperature 1,
    before nucleus and minimum length."""

    id: str
    token_ids: list[int]
    finish: str
    logps: list[float] | None = None
