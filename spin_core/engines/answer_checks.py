"""What an engine gave, as an answer: its text, how it ended, and whether it is one at all.

Not a judgement of quality (gather counts what is odd). Here ends what an engine may do wrong: what passes `check` is
published, and every later stage relies on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_core.engines import Answer, Request, Sampling
from spin_core.errors import StageFailed
from spin_core.modeling.chat import Chat

ABOVE_ZERO = 1e-3
"""Nats by which rounding may lift the log-prob of a certain token above 0 (bfloat16 logits near 16 are 0.06 apart, but
engines take the softmax in float32)."""


@dataclass(frozen=True)
class Limits:
    """What a model's config.json says of its sizes; None: nothing."""

    context: int | None
    """Tokens of prompt and answer together."""
    vocabulary: int | None

    @classmethod
    def of(cls, model: Path) -> Limits:
        """Read without loading anything. A model of text and images has them under `text_config`; GPT-2 calls its
        context n_positions."""
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        parts = [config, config.get("text_config") or {}]

        def first(*names: str) -> int | None:
            return next((part[name] for part in parts for name in names if isinstance(part.get(name), int)), None)

        return cls(first("max_position_embeddings", "n_positions", "max_seq_len"), first("vocab_size"))


def text_and_finish(answer: Answer, chat: Chat, sampling: Sampling) -> tuple[str, str]:
    """The answer's text, cut before the first stop string and stripped on the left, and `stop` or `length`."""
    if not sampling.stop:
        return chat.clean(answer.token_ids), answer.finish
    text = _decoded(answer, chat, skip_special=True)
    if (
        answer.finish == "stop"
        and answer.token_ids[-1] not in sampling.stop_ids
        and not any(map(text.count, sampling.stop))
    ):
        text = " " + text  # many tokenizers drop the space before the first word, which the engine has seen
    ends = [text.index(stop) for stop in sampling.stop if stop in text]
    return text[: min(ends, default=len(text))].lstrip(), "stop" if ends else answer.finish


def check(answers: Sequence[Answer], requests: Sequence[Request], sampling: Sampling, chat: Chat, vocab_size: int,
          engine: str) -> None:  # fmt: skip
    """Raise StageFailed, naming row and engine, unless `answers` are those of `requests`, in their order, and each is
    one that `sampling` allows. `vocab_size`: tokens that the model has."""
    given, expected = [answer.id for answer in answers], [request.id for request in requests]
    if given != expected:
        pairs = zip([*given, None], [*expected, None], strict=False)
        got, row = next(pair for pair in pairs if pair[0] != pair[1])
        raise StageFailed(
            f"The {engine} engine gave {len(given)} answers to {len(expected)} prompts, the first that is out of place "
            f"for row {got} instead of {row}; run again, and if it stays so take the other engine."
        )
    for answer in answers:
        if why := _wrong(answer, sampling, chat, vocab_size):
            raise StageFailed(
                f"row {answer.id}: the {engine} engine's answer {why}; nothing was kept of this shard. Run again, and "
                "if it stays so take the other engine."
            )


def _wrong(answer: Answer, sampling: Sampling, chat: Chat, vocab_size: int) -> str:
    """What is wrong with one answer; empty where nothing is."""
    ids = answer.token_ids
    strange = [token for token in ids if type(token) is not int or not 0 <= token < vocab_size]
    if strange:
        return f"has the token {strange[0]!r}, which is none of the model's {vocab_size:,}"
    if len(ids) > sampling.max_new_tokens:
        return f"has {len(ids)} tokens, more than the {sampling.max_new_tokens} that were requested"
    if answer.finish not in ("stop", "length"):
        return f"ended with {answer.finish!r}, which is neither stop nor length"
    if any(token in sampling.stop_ids for token in ids[:-1]):
        return "goes on behind a token that ends it"
    ended = bool(ids) and ids[-1] in sampling.stop_ids
    if answer.finish == "stop" and not ended:
        # Engines differ in whether special tokens are text; of the first space, see `text_and_finish`.
        texts = [" " + _decoded(answer, chat, skip_special) for skip_special in (False, True)]
        if not any(stop in text for stop in sampling.stop for text in texts):
            return "is said to have stopped, but ends in no stop token and holds no stop string"
    if answer.finish == "length" and (ended or len(ids) < sampling.max_new_tokens):
        how = "in a stop token" if ended else f"after {len(ids)} of {sampling.max_new_tokens} tokens"
        return f"is said to be cut, but ended {how}"
    if not sampling.logprobs:
        return ""
    if answer.logps is None or len(answer.logps) != len(ids):
        return f"has {'no' if answer.logps is None else len(answer.logps)} log-probs for its {len(ids)} tokens"
    impossible = [logp for logp in answer.logps if not math.isfinite(logp) or logp > ABOVE_ZERO]
    return f"has the log-prob {impossible[0]}" if impossible else ""


def _decoded(answer: Answer, chat: Chat, skip_special: bool) -> str:
    """The text up to the first token that ends it, nothing stripped."""
    ids = answer.token_ids
    end = next((i for i, token in enumerate(ids) if token in chat.end_ids), len(ids))
    return chat.tokenizer.decode(ids[:end], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
