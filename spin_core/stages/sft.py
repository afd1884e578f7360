"""Supervised fine-tuning: makes θ_0 from a base model on the same rows, or continues a model as SPIN's control.

What it is *not*: no packing of rows, no loss on prompts, no adapters. The loss is the mean over all answer tokens of
the global batch (nats per token), exact under accumulation: a long answer weighs more than a short one.

inputs   `model`: a model directory with tokenizer and chat template · `rows`: a rows tree (its train split)
outputs  a model directory (safetensors in the dtype of the source's files) with `metrics.jsonl`, one line per
optimiser step, and a model card (README.md)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spin_core.config.base import Section
from spin_core.config.chat import ChatSection
from spin_core.config.finetune import Sft
from spin_core.data.rows import TRAIN_FILE, read_rows
from spin_core.job import Inputs, Job
from spin_core.modeling.chat import Chat
from spin_core.store.keys import config_payload

if TYPE_CHECKING:
    from spin_core.modeling.collate import Tokens

NAME = "sft"
VERSION = 2


class Config(Section):
    """What θ_0 depends on besides base model and rows."""

    sft: Sft
    chat: ChatSection
    seed: int


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Train on the train rows; give headline figures. Raises BadInput where nothing would be trained."""
    from spin_core.modeling import loading
    from spin_core.modeling.opponent import release_opponent
    from spin_core.report.model_card import write_card
    from spin_core.training.loop import TrainingPlan, load_trainable, train, write_results
    from spin_core.training.objectives import AnswerRows

    loading.apply_threads(job.runtime)
    source, part = cast(Path, inputs["model"]), config.sft
    chat = loading.load_chat(source, config.chat)
    rows = _encode(cast(Path, inputs["rows"]), chat, part.max_length, job)
    release_opponent()
    model = load_trainable(source, job)
    plan = TrainingPlan.of(part, config.seed, len(rows))
    pad_id = chat.tokenizer.pad_token_id
    history, resumed_at, strategy = train(model, pad_id, part.precision, AnswerRows(rows), plan, job, "sft")
    write_results(model, history, source, job.out, strategy)
    write_card(job, "sft", config_payload(config), source, history)
    return {
        "steps": len(history),
        "resumed_at": resumed_at,
        "rows": len(rows),
        "tokens": sum(row.targets for row in rows),
        "loss/first": history[0]["loss"],
        "loss/last": history[-1]["loss"],
    }


def _encode(tree: Path, chat: Chat, max_length: int, job: Job) -> list[Tokens]:
    from spin_core.modeling.collate import encode_answer

    rows = read_rows(tree / TRAIN_FILE)
    encoded = []
    with job.progress("tokenise", len(rows), "rows") as bar:
        for row in rows:
            encoded.append(encode_answer(chat, row.prompt, row.answer, True, max_length, f"row {row.id}"))
            bar.advance()
    return encoded
