"""One shard of prompts to the current model's answers y' ~ p_θt(·|x) (paper, Algorithm 1, line 3).

Not done here: no filter and no retry of cut answers (gather counts them), no look at the real answers (the shard holds
none, so that editing an answer regenerates nothing).

inputs   `model`: a model directory (θ_t) · `prompts`: one shard of a tokens tree, JSON lines {id, prompt} with ids
outputs  `answers.jsonl`: {id, text, finish, tokens, token_ids} per answer, sorted by id; `token_ids` are what is scored
         and trained, `text` is for people and the hub; of `generate.n` answers to a row the first has the row's id, the
         others `<id>#2` and on (`answer_id`); with `attempts` where there were several, and where requested with
         `logps` (nats, of each token) under `model` (its content digest)
rejects  a prompt that with max_new_tokens is over the model's context is not sampled: finish `rejected` and `why`
assumes  ids are unique in the shard

The draws of an answer depend on (seed, its id) alone, so it depends neither on its batch nor on its shard (what exactly
holds: engines/transformers_engine.py), and a model that did not change answers as before.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from spin_core.config.base import Section
from spin_core.config.chat import ChatSection
from spin_core.config.generate import Generate
from spin_core.config.runtime import Runtime
from spin_core.data.rows import answer_id, row_of
from spin_core.engines import Request
from spin_core.engines.answer_checks import Limits, check, text_and_finish
from spin_core.engines.requests import request, row_seed, sampling
from spin_core.engines.table import ENGINES
from spin_core.job import Inputs, Job
from spin_core.modeling.chat import Chat
from spin_core.runtime.part import Own

NAME = "generate"
VERSION = 2
"""2: prompts come as ids of `tokenize`, and answers have the ids that were sampled."""


class Config(Section):
    """What the answers depend on besides model and prompts."""

    generate: Generate
    chat: ChatSection
    seed: int


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write answers.jsonl; give counts of answers and tokens. Raises StageFailed where the engine did not give one
    allowed answer for each."""
    from spin_core.modeling.loading import load_chat

    model, part = cast(Path, inputs["model"]), config.generate
    lines = cast(Path, inputs["prompts"]).read_text(encoding="utf-8").split("\n")
    prompts = [json.loads(line) for line in lines if line]
    chat, limits = load_chat(model, config.chat), Limits.of(model)
    every = ((answer_id(row["id"], number), row["prompt"]) for row in prompts for number in range(part.n))
    requests = [request(id, prompt, config.seed) for id, prompt in every]
    room = None if limits.context is None else limits.context - part.max_new_tokens
    rejected = [one for one in requests if room is not None and len(one.prompt) > room]
    fitting = [one for one in requests if room is None or len(one.prompt) <= room]
    out = _draw(model, fitting, chat, limits, config, job)
    counts = _counts(list(out.values()))
    for one in rejected:
        why = f"its prompt of {len(one.prompt)} tokens leaves no room for {part.max_new_tokens} new ones"
        out[one.id] = {"id": one.id, "text": "", "finish": "rejected", "tokens": 0, "token_ids": [], "why": why}
    without = [one for one in rejected if row_of(one.id) == one.id or part.n == 1]  # each prompt once
    if without:
        job.note(_of_rejected(without, limits, part.max_new_tokens))
    with (job.out / "answers.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(out[id], ensure_ascii=False) + "\n" for id in sorted(out))
    return job.figures | counts | {"rejected": len(without), "engine": job.engine}


def environment(config: Config, runtime: Runtime) -> Own | None:
    """The kind of process that the stage needs and its interpreter, where the engine has one of its own."""
    part, engine = config.generate, ENGINES[config.generate.engine]
    if not (python := engine.interpreter(runtime)):
        return None
    return Own(
        engine.process(config.chat.max_prompt_length + part.max_new_tokens, bool(part.stop)), python, engine.KEPT
    )


def _draw(
    model: Path, requests: list[Request], chat: Chat, limits: Limits, config: Config, job: Job
) -> dict[str, dict[str, Any]]:
    """Answer id → its line of answers.jsonl: the last one drawn; empty ones are drawn again while attempts are left."""
    part, lines, figures = config.generate, dict[str, dict[str, Any]](), dict[str, float]()
    how = replace(
        sampling(chat, part.temperature, part.top_p, part.max_new_tokens),
        top_k=part.top_k, min_new_tokens=part.min_new_tokens, stop=tuple(part.stop), logprobs=part.logprobs,
    )  # fmt: skip
    if limits.context is not None:
        how = replace(how, max_prompt=min(how.max_prompt, limits.context - part.max_new_tokens))
    vocab_size = limits.vocabulary or len(chat.tokenizer)
    for attempt in range(1, part.attempts + 1):
        if not requests:
            break
        label = "generate" if attempt == 1 else f"generate, attempt {attempt}"
        answers = ENGINES[part.engine].sample(model, requests, how, job, label)
        figures = figures or dict(job.figures)  # of the first draw: the others are too few to say how fast it is
        check(answers, requests, how, chat, vocab_size, part.engine)
        for answer in answers:
            text, finish = text_and_finish(answer, chat, how)
            line: dict[str, Any] = {"id": answer.id, "text": text, "finish": finish}
            line |= {"tokens": len(answer.token_ids), "token_ids": answer.token_ids}
            line |= {"attempts": attempt} if attempt > 1 else {}
            lines[answer.id] = line | ({"logps": answer.logps, "model": job.digests["model"]} if part.logprobs else {})
        stream = f"generate/{attempt + 1}"
        empty = [one for one in requests if not lines[one.id]["text"]]
        requests = [replace(one, seed=row_seed(config.seed, one.id, stream)) for one in empty]
    job.figures |= figures
    return lines


def _counts(lines: list[dict[str, Any]]) -> dict[str, float]:
    tokens = sum(line["tokens"] for line in lines)
    return {
        "answers": len(lines),
        "tokens": tokens,
        "tokens_mean": tokens / max(len(lines), 1),
        "cut": sum(line["finish"] == "length" for line in lines),
        "empty": sum(not line["text"] for line in lines),
        "redrawn": sum("attempts" in line for line in lines),
    }


def _of_rejected(rejected: list[Request], limits: Limits, new: int) -> str:
    first = min(rejected, key=lambda one: one.id)
    many = "1 prompt does" if len(rejected) == 1 else f"{len(rejected)} prompts do"
    return (
        f"{many} not fit into the model's context of {limits.context} tokens with {new} new ones and are left out; "
        f"first: row {first.id} with {len(first.prompt)}; lower chat.max_prompt_length or generate.max_new_tokens."
    )
