"""Supervised fine-tuning: makes θ_0 from a base model on the same rows, or continues a model as SPIN's control.

What it is *not*: no packing of rows, no loss on prompts, no adapters. The loss is the mean over all answer tokens of
the global batch (nats per token), exact under accumulation: a long answer weighs more than a short one.

inputs   `model`: a model directory with tokenizer and chat template · `tokens`: the rows' tokens tree (train split)
outputs  a model directory (safetensors in the dtype of the source's files) with `metrics.jsonl`, one line per
         optimiser step, and a model card (README.md)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from spin_core.config.base import Section
from spin_core.config.sft import Sft
from spin_core.job import Inputs, Job
from spin_core.store.keys import config_payload

NAME = "sft"
VERSION = 3
"""2: the model carries a card with its chain of training steps.
3: reads the ids of `tokenize`."""


class Config(Section):
    """What θ_0 depends on besides base model and the rows' tokens."""

    sft: Sft
    seed: int


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Train on the train rows; give headline figures. Raises BadInput where nothing would be trained."""
    from spin_core.modeling import loading
    from spin_core.modeling.collate import note_cuts, read_groups
    from spin_core.modeling.opponent import release_opponent
    from spin_core.modeling.packing import PADDING
    from spin_core.report.model_card import write_card
    from spin_core.training.loop import TrainingPlan, load_trainable, train, write_results
    from spin_core.training.objectives import AnswerRows

    loading.apply_threads(job.runtime)
    source, part = cast(Path, inputs["model"]), config.sft
    rows = read_groups([cast(Path, inputs["tokens"])], "train", part.max_length, ["answer"])
    cut = note_cuts(rows, "train", "sft.max_length", job)
    release_opponent()
    model = load_trainable(source, job)
    plan = TrainingPlan(part, config.seed, len(rows))
    history, resumed_at, strategy = train(model, PADDING, AnswerRows(rows), plan, job, "sft")
    write_results(model, history, source, job.out, strategy)
    write_card(job, "sft", config_payload(config), source, history)
    return {
        "steps": len(history),
        "resumed_at": resumed_at,
        "rows": len(rows),
        "tokens": sum(row.targets for (row,) in rows),
        "cut": cut["answer"],
        "loss/first": history[0]["loss"],
        "loss/last": history[-1]["loss"],
    }
