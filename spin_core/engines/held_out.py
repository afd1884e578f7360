"""A model's answers to the held-out prompts, a set for each decoder: the part of evaluate that an engine computes.

No step of its own: it has no key, and what it writes is in evaluate's scratch. Where the engine has an interpreter of
its own this part runs there (`spin_core.runtime.step.Part`), before evaluate's own, which computes likelihoods under
ours; else evaluate calls `answers`.

inputs   as evaluate's; read are `model` and, of `tokens`, the test set
outputs  `held_out.jsonl`: {kind, id, finish, token_ids} of each answer, in the order of kinds and rows
The draws of an answer depend on (seed, its id) alone, and are the same for every engine (`spin_core.engines`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from spin_core.config.base import Section
from spin_core.config.chat import ChatSection
from spin_core.config.choices import EngineName
from spin_core.config.generate import Decoding
from spin_core.config.runtime import Runtime
from spin_core.data import token_file
from spin_core.data.token_file import TokenFile
from spin_core.engines import Answer, Request
from spin_core.engines.answer_checks import Limits, check
from spin_core.engines.requests import request, sampling
from spin_core.engines.table import ENGINES
from spin_core.job import Inputs, Job
from spin_core.modeling.chat import Chat
from spin_core.runtime.part import Own

NAME = "held_out"
FILE = "held_out.jsonl"


class Config(Section):
    """`decoders`: kind of answer → how it is drawn."""

    decoders: dict[str, Decoding]
    max_new_tokens: int
    engine: EngineName
    chat: ChatSection
    seed: int


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write FILE; give the engine and its figures. Raises what `answers` raises."""
    from spin_core.modeling.loading import load_chat

    model = cast(Path, inputs["model"])
    tokens = TokenFile(cast(Path, inputs["tokens"]) / token_file.FILES["test"])
    drawn = answers(model, requests(tokens, config.seed), load_chat(model, config.chat), config, job)
    with (job.out / FILE).open("w", encoding="utf-8") as file:
        for kind, given in drawn.items():
            for one in given:
                line = {"kind": kind, "id": one.id, "finish": one.finish, "token_ids": one.token_ids}
                file.write(json.dumps(line) + "\n")
    return job.figures | {"engine": job.engine}


def environment(config: Config, runtime: Runtime) -> Own | None:
    """The kind of process that it needs and its interpreter, where the engine has one of its own."""
    engine = ENGINES[config.engine]
    if not (python := engine.interpreter(runtime)):
        return None
    return Own(engine.process(config.chat.max_prompt_length + config.max_new_tokens, False), python, engine.KEPT)


def requests(tokens: TokenFile, seed: int) -> list[Request]:
    """A request for each held-out row, by the prompt that is sampled from."""
    column = "generation_prompt" if "generation_prompt" in tokens.columns else "prompt"
    rows = zip(tokens.ids, tokens, strict=True)
    return [request(id, row[column].tolist(), seed, "evaluate") for id, row in rows]


def fitting(every: Sequence[Request], model: Path, max_new_tokens: int) -> list[Request]:
    """Those that leave room for so many tokens in the model's context."""
    context = Limits.of(model).context
    return [one for one in every if context is None or len(one.prompt) + max_new_tokens <= context]


def answers(model: Path, every: Sequence[Request], chat: Chat, config: Config, job: Job) -> dict[str, list[Answer]]:
    """Kind → the answers to those requests that fit. `job.figures` are of the first kind, before which the engine
    starts. Raises StageFailed for an answer that no engine may give."""
    asked, limits = fitting(every, model, config.max_new_tokens), Limits.of(model)
    vocab_size, drawn = limits.vocabulary or len(chat.tokenizer), dict[str, list[Answer]]()
    figures = dict[str, float]()
    for kind, how in config.decoders.items():
        settings = sampling(chat, how.temperature, how.top_p, config.max_new_tokens)
        longest = settings.max_prompt if limits.context is None else limits.context - config.max_new_tokens
        settings = replace(settings, top_k=how.top_k, max_prompt=min(settings.max_prompt, longest))
        drawn[kind] = ENGINES[config.engine].sample(model, asked, settings, job, kind) if asked else []
        check(drawn[kind], asked, settings, chat, vocab_size, config.engine)
        figures = figures or dict(job.figures)
    job.figures |= figures
    return drawn


def read(folder: Path, kinds: Sequence[str]) -> dict[str, list[Answer]]:
    """What `run` wrote there."""
    drawn: dict[str, list[Answer]] = {kind: [] for kind in kinds}
    for line in map(json.loads, (folder / FILE).read_text(encoding="utf-8").splitlines()):
        drawn[line["kind"]].append(Answer(line["id"], line["token_ids"], line["finish"]))
    return drawn
