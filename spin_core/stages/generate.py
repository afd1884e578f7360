"""One shard of prompts to the current model's answers y' ~ p_θt(·|x) (paper, Algorithm 1, line 3).

Not done here: no filter and no retry of empty or cut answers (gather counts them), no look at the real answers (the
shard holds none, so that editing an answer regenerates nothing).

inputs   `model`: a model directory (θ_t) · `prompts`: one shard of a rows tree, JSON lines {id, prompt}
outputs  `answers.jsonl`: {id, text, finish, tokens, token_ids} per prompt, sorted by id
Assumes that ids are unique in the shard. The draws of a row depend on (seed, row id) alone, so its answer depends
neither on its batch nor on its shard (what exactly holds: engines/transformers_engine.py), and a model that did not
change answers as before.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal, cast

from pydantic import Field

from spin_core.chat import Chat, ChatSection, Messages
from spin_core.engines import Request, Sampling
from spin_core.job import Inputs, Job
from spin_core.section import Section

VERSION = 1


class Generate(Section):
    """`generate:` in a profile."""

    engine: Literal["transformers"] = Field("transformers", description="What samples the answers.")
    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy decoding.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus sampling: the smallest set of tokens with this probability."
    )
    max_new_tokens: int = Field(256, ge=1, description="Tokens of answer; a longer answer is cut and marked `length`.")


class Config(Section):
    """What the answers depend on besides model and prompts."""

    generate: Generate
    chat: ChatSection
    seed: int


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Write answers.jsonl; give counts of answers and tokens. Raises BadInput for a prompt that the model cannot
    take."""
    from spin_core.engines.transformers_engine import sample
    from spin_core.models import load_chat

    model = cast(Path, inputs["model"])
    lines = cast(Path, inputs["prompts"]).read_text(encoding="utf-8").split("\n")
    prompts = [json.loads(line) for line in lines if line]
    chat = load_chat(model, config.chat)
    part = config.generate
    requests = [request(chat, row["id"], row["prompt"], config.seed) for row in prompts]
    answers = sample(
        model, requests, sampling(chat, part.temperature, part.top_p, part.max_new_tokens), job, "generate"
    )
    with (job.out / "answers.jsonl").open("w", encoding="utf-8") as out:
        for answer in sorted(answers, key=lambda answer: answer.id):
            line: dict = {"id": answer.id, "text": chat.clean(answer.token_ids), "finish": answer.finish}
            line |= {"tokens": len(answer.token_ids), "token_ids": answer.token_ids}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
    tokens = sum(len(answer.token_ids) for answer in answers)
    return {"answers": len(answers), "tokens": tokens, "cut": sum(answer.finish == "length" for answer in answers)}


def request(chat: Chat, row_id: str, prompt: Messages, seed: int, stream: str = "generate") -> Request:
    """The prompt as the engine gets it. Raises BadInput when what would be sampled is not what would be scored."""
    chat.preflight(prompt)
    return Request(row_id, chat.encode_prompt(prompt, for_generation=True), row_seed(seed, row_id, stream))


def row_seed(seed: int, row_id: str, stream: str) -> int:
    """128 bits from (run seed, row id); `stream` keeps evaluation's draws apart from generation's."""
    return int.from_bytes(hashlib.sha256(f"{stream}\x1f{seed}\x1f{row_id}".encode()).digest()[:16], "big")


def sampling(chat: Chat, temperature: float, top_p: float, max_new_tokens: int) -> Sampling:
    """The engine's settings: stop at any token that ends an answer of this model."""
    return Sampling(temperature, top_p, max_new_tokens, frozenset(chat.end_ids), chat.tokenizer.pad_token_id)
