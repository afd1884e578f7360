"""Pairs and rows to token sequences.

Two ways: *exact* (what was sampled is what is scored; nothing is cut that fits) and *reference* (the published code's
tokenisation, masks and cuts, for reproducing its numbers). What it is *not*: no chat templates (that is `chat`), no
batches (that is `packing`), no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spin_core.config.finetune import Score
from spin_core.data.rows import Messages, Pair
from spin_core.errors import BadInput
from spin_core.job import Job
from spin_core.modeling.chat import Chat, reference_texts


@dataclass(frozen=True)
class Tokens:
    """One prompt and answer. `ids` int32 [T] (50k pairs of 2 × 1,024 tokens take 0.4 GB; lists 3 GB)."""

    ids: np.ndarray
    prompt: int
    """How many of `ids` are prompt; the rest is the answer, and its labels."""
    masked: np.ndarray | None = None
    """Positions with attention 0 (the reference hides each EOS inside a text); None: none."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> int:
        """How many labels a causal model can predict: the very first token has nothing before it."""
        return len(self.ids) - max(self.prompt, 1) if len(self.ids) else 0

    def mask(self) -> np.ndarray:
        mask = np.ones(len(self.ids), np.int64)
        if self.masked is not None:
            mask[self.masked] = 0
        return mask


def encode_answer(chat: Chat, prompt: Messages, answer: str, finished: bool, max_length: int, where: str) -> Tokens:
    """Exact tokens of `answer` behind `prompt`: only the answer is cut to `max_length`, and only if the two do not fit.

    An answer that is cut, or was not `finished`, has no end-of-turn token. Raises BadInput where the prompt leaves no
    room.
    """
    prompt_ids = chat.encode_prompt(prompt)
    if len(prompt_ids) >= max_length:
        raise BadInput(
            f"{where}: the prompt's {len(prompt_ids)} tokens leave no room for an answer in max_length {max_length}; "
            "lower chat.max_prompt_length or raise max_length"
        )
    ids = (prompt_ids + chat.encode_answer(prompt, answer, finished=finished))[:max_length]
    return Tokens(np.array(ids, np.int32), len(prompt_ids))


def encode_pairs(pairs: Sequence[Pair], chat: Chat, settings: Score, job: Job) -> list[tuple[Tokens, Tokens]]:
    """(real, generated) of every pair, as `settings.collation` says. Scoring and training take it from here."""
    encoded = []
    with job.progress("tokenise", len(pairs), "pairs") as bar:
        for pair in pairs:
            encoded.append(_encode_pair(pair, chat, settings))
            bar.advance()
    return encoded


def _encode_pair(pair: Pair, chat: Chat, settings: Score) -> tuple[Tokens, Tokens]:
    longest, where = settings.max_length, f"pair {pair.id}"
    if settings.collation == "exact":
        real = encode_answer(chat, pair.prompt, pair.real, True, longest, where)
        return real, encode_answer(chat, pair.prompt, pair.generated, pair.finish == "stop", longest, where)
    answers = {"real": pair.real, "generated": pair.generated}
    row = {name: [*pair.prompt, {"role": "assistant", "content": text}] for name, text in answers.items()}
    texts = reference_texts(row, chat.tokenizer)
    return encode_reference(texts, chat.tokenizer, longest, chat.section.max_prompt_length)


def encode_reference(
    texts: dict[str, str], tokenizer: Any, max_length: int, max_prompt_length: int, truncation_mode: str = "keep_end"
) -> tuple[Tokens, Tokens]:
    """(real, generated) as the reference's `DataCollatorWithPadding.tokenize_batch_element` makes them of its three
    texts.

    `texts`: `text_prompt`, `text_real`, `text_generated`. Prompt and answers are tokenised apart, without special
    tokens; an EOS in them is hidden (attention 0) yet stays a label; one more EOS is appended. If prompt and longer
    answer are over `max_length`, the prompt is cut to `max_prompt_length` (its last tokens: keep_end, its first:
    keep_start), and if that is not enough, *both* answers to their first `max_length − max_prompt_length` tokens.
    Python's slice rules apply to degenerate lengths, as they did there. Raises ValueError for another mode, once a cut
    is needed.
    """
    names = ("text_prompt", "text_real", "text_generated")
    prompt, real, generated = (list(tokenizer(texts[name], add_special_tokens=False)["input_ids"]) for name in names)
    eos = tokenizer.eos_token_id
    answers = [([*ids, eos], [i for i, token in enumerate(ids) if token == eos]) for ids in (real, generated)]
    longest = max(len(ids) for ids, _ in answers)
    hidden = [i for i, token in enumerate(prompt) if token == eos]
    if len(prompt) + longest > max_length:
        if truncation_mode not in ("keep_start", "keep_end"):
            raise ValueError(f"truncation_mode must be keep_end or keep_start, not {truncation_mode!r}")
        start, end = (None, max_prompt_length) if truncation_mode == "keep_start" else (-max_prompt_length, None)
        kept = range(len(prompt))[start:end]
        hidden, prompt = [i - kept.start for i in hidden if i in kept], prompt[start:end]
    if len(prompt) + longest > max_length:
        answers = [(ids[: max_length - max_prompt_length], masked) for ids, masked in answers]

    def tokens(ids: list[int], masked: list[int]) -> Tokens:
        at = hidden + [len(prompt) + i for i in masked if i < len(ids)]
        return Tokens(np.array(prompt + ids, np.int32), len(prompt), np.array(at, np.int32) if at else None)

    return tokens(*answers[0]), tokens(*answers[1])
