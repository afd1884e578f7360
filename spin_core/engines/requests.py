"""What an engine is asked for: a row's request with its own seed, and the settings that are the model's matter."""

from __future__ import annotations

import hashlib

from spin_core.engines import Request, Sampling
from spin_core.modeling.chat import Chat


def request(row_id: str, prompt: list[int], seed: int, stream: str = "generate") -> Request:
    """The prompt as the engine gets it."""
    return Request(row_id, prompt, row_seed(seed, row_id, stream))


def row_seed(seed: int, row_id: str, stream: str) -> int:
    """128 bits from (run seed, row id); `stream` keeps evaluation's draws apart from generation's."""
    return int.from_bytes(hashlib.sha256(f"{stream}\x1f{seed}\x1f{row_id}".encode()).digest()[:16], "big")


def sampling(chat: Chat, temperature: float, top_p: float, max_new_tokens: int) -> Sampling:
    """The engine's settings: stop at any token that ends an answer of this model."""
    stop_ids, longest = frozenset(chat.end_ids), chat.section.max_prompt_length
    return Sampling(temperature, top_p, max_new_tokens, stop_ids, chat.tokenizer.pad_token_id, max_prompt=longest)
