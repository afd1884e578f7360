"""One shard of prompts to the current model's answers y' ~ p_θt(·|x) (paper, Algorithm 1, line 3).

Not done here: no filter and no retry of cut answers (gather counts them), no look at the real answers (the shard holds
none, so that editing an answer regenerates nothing).

inputs   `model`: a model directory (θ_t) · `prompts`: one shard of a rows tree, JSON lines {id, prompt}
outputs  `answers.jsonl`: {id, text, finish, tokens, token_ids} per prompt, sorted by id; with `attempts` where there
         were several, and where asked for with `logps` (nats, of each token) under `model` (its content digest)
rejects  a prompt that with max_new_tokens is over the model's context is not sampled: finish `rejected` and `why`
Assumes that ids are unique in the shard. The draws of a row depend on (seed, row id) alone, so its answer depends
neither on its batch nor on its shard (what exactly holds: engines/transformers_engine.py), and a model that did not
change answers as before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from spin_core.config.base import Section
from spin_core.config.chat import ChatSection
from spin_core.config.generate import Generate
from spin_core.config.runtime import Runtime
from spin_core.data.rows import Messages
from spin_core.engines import Answer, Request, Sampling
from spin_core.engines.answer_checks import Limits, check, text_and_finish
from spin_core.job import Inputs, Job
from spin_core.modeling.chat import Chat

NAME = "generate"
VERSION = 1


class Config(Section):
    """What the answers depend on besides model and prompts."""

    generate: Generate
    chat: ChatSection
    seed: int


def environment(config: Config, runtime: Runtime) -> str:
    """Which kind of process the stage needs: one of vLLM's interpreter, started for these sequences, or (empty) one of
    the interpreter that asks."""
    part = config.generate
    if part.engine != "vllm":
        return ""
    return f"vllm {config.chat.max_prompt_length + part.max_new_tokens}{' decoding' if part.stop else ''}"


@dataclass(frozen=True)
class Drawn:
    """A row's answer: the last that was sampled of it, as text; `attempts` says how many were."""

    answer: Answer
    text: str
    finish: str
    attempts: int


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Write answers.jsonl; give counts of answers and tokens. Raises BadInput for a prompt that cannot be rendered,
    StageFailed where the engine did not give one allowed answer for each."""
    from spin_core.modeling.loading import load_chat

    model, part = cast(Path, inputs["model"]), config.generate
    lines = cast(Path, inputs["prompts"]).read_text(encoding="utf-8").split("\n")
    prompts = [json.loads(line) for line in lines if line]
    chat, limits = load_chat(model, config.chat), Limits.of(model)
    requests = [request(chat, row["id"], row["prompt"], config.seed) for row in prompts]
    room = None if limits.context is None else limits.context - part.max_new_tokens
    rejected = [one for one in requests if room is not None and len(one.prompt) > room]
    fitting = [one for one in requests if room is None or len(one.prompt) <= room]
    drawn = _draw(model, fitting, chat, limits, config, job)
    out = {one.answer.id: _line(one, {"model": job.digests["model"]} if part.logprobs else {}) for one in drawn}
    for one in rejected:
        why = f"its prompt of {len(one.prompt)} tokens leaves no room for {part.max_new_tokens} new ones"
        out[one.id] = {"id": one.id, "text": "", "finish": "rejected", "tokens": 0, "token_ids": [], "why": why}
    if rejected:
        job.note(_of_rejected(rejected, limits, part.max_new_tokens))
    with (job.out / "answers.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(out[id], ensure_ascii=False) + "\n" for id in sorted(out))
    return job.figures | _counts(drawn) | {"rejected": len(rejected), "engine": job.engine}


def _draw(model: Path, requests: list[Request], chat: Chat, limits: Limits, config: Config, job: Job) -> list[Drawn]:
    """The answers of the requests, the empty ones drawn again while attempts are left."""
    part, drawn, figures = config.generate, dict[str, Drawn](), dict[str, float]()
    how = replace(
        sampling(chat, part.temperature, part.top_p, part.max_new_tokens),
        min_new_tokens=part.min_new_tokens, stop=tuple(part.stop), logprobs=part.logprobs,
    )  # fmt: skip
    if limits.context is not None:
        how = replace(how, max_prompt=min(how.max_prompt, limits.context - part.max_new_tokens))
    words = limits.vocabulary or len(chat.tokenizer)
    for attempt in range(1, part.attempts + 1):
        if not requests:
            break
        label = "generate" if attempt == 1 else f"generate, attempt {attempt}"
        answers = _engine(part.engine)(model, requests, how, job, label)
        figures = figures or dict(job.figures)  # of the first draw: the others are too few to say how fast it is
        check(answers, requests, how, chat, words, part.engine)
        for answer in answers:
            drawn[answer.id] = Drawn(answer, *text_and_finish(answer, chat, how), attempt)
        stream = f"generate/{attempt + 1}"
        empty = [one for one in requests if not drawn[one.id].text]
        requests = [replace(one, seed=row_seed(config.seed, one.id, stream)) for one in empty]
    job.figures |= figures
    return list(drawn.values())


def _engine(name: str) -> Callable[[Path, list[Request], Sampling, Job, str], list[Answer]]:
    if name == "vllm":
        from spin_core.engines import vllm_engine

        return vllm_engine.sample
    from spin_core.engines import transformers_engine

    return transformers_engine.sample


def _line(drawn: Drawn, model: dict) -> dict[str, Any]:
    """One line of answers.jsonl; with `model` the log-probs under it."""
    answer = drawn.answer
    line: dict[str, Any] = {"id": answer.id, "text": drawn.text, "finish": drawn.finish}
    line |= {"tokens": len(answer.token_ids), "token_ids": answer.token_ids}
    if drawn.attempts > 1:
        line["attempts"] = drawn.attempts
    return line | ({"logps": answer.logps} | model if model else {})


def _counts(drawn: list[Drawn]) -> dict[str, float]:
    tokens = sum(len(one.answer.token_ids) for one in drawn)
    return {
        "answers": len(drawn),
        "tokens": tokens,
        "tokens_mean": tokens / max(len(drawn), 1),
        "cut": sum(one.finish == "length" for one in drawn),
        "empty": sum(not one.text for one in drawn),
        "redrawn": sum(one.attempts > 1 for one in drawn),
    }


def _of_rejected(rejected: list[Request], limits: Limits, new: int) -> str:
    first = min(rejected, key=lambda one: one.id)
    many = "1 prompt does" if len(rejected) == 1 else f"{len(rejected)} prompts do"
    return (
        f"{many} not fit into the model's context of {limits.context} tokens with {new} new ones and are left out; "
        f"first: row {first.id} with {len(first.prompt)}; lower chat.max_prompt_length or generate.max_new_tokens."
    )


def request(chat: Chat, row_id: str, prompt: Messages, seed: int, stream: str = "generate") -> Request:
    """The prompt as the engine gets it. Raises BadInput when what would be sampled is not what would be scored."""
    chat.preflight(prompt)
    return Request(row_id, chat.encode_prompt(prompt, for_generation=True), row_seed(seed, row_id, stream))


def row_seed(seed: int, row_id: str, stream: str) -> int:
    """128 bits from (run seed, row id); `stream` keeps evaluation's draws apart from generation's."""
    return int.from_bytes(hashlib.sha256(f"{stream}\x1f{seed}\x1f{row_id}".encode()).digest()[:16], "big")


def sampling(chat: Chat, temperature: float, top_p: float, max_new_tokens: int) -> Sampling:
    """The engine's settings: stop at any token that ends an answer of this model."""
    stop_ids, longest = frozenset(chat.end_ids), chat.section.max_prompt_length
    return Sampling(temperature, top_p, max_new_tokens, stop_ids, chat.tokenizer.pad_token_id, max_prompt=longest)
