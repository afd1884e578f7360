"""One SPIN iteration: weights in, weights out (paper, eq. 4.7).

What it is *not*: no generation, no evaluation, no opponent in memory (its log-probs come from score). Trains on the
train split of all pairs trees together; whole-model data parallel at most (no ZeRO, no adapters).

inputs   `model`: θ_t · `pairs`: pairs trees, newest first · `logps`: their score trees under θ_t, in the same order
outputs  a model directory (safetensors in the dtype of θ_t's files) with `metrics.jsonl`, one line per optimiser step
assumes  `job.digests` has the inputs' digests, which the score trees must name
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field

from spin_core.chat import ChatSection
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.rows import TRAIN_FILE, Pair, read_pairs
from spin_core.section import Section
from spin_core.stages.score import Score

if TYPE_CHECKING:
    from spin_core.objectives import SpinPairs
    from spin_core.training import Plan

VERSION = 1


class Finetune(Section):
    """`finetune:` in a profile."""

    loss: Literal["sigmoid", "hinge"] = Field("sigmoid", description="sigmoid: −log σ(z); hinge: max(0, 1 − z).")
    beta: float = Field(0.1, gt=0, description="λ of the paper: weight of the log-ratio in the loss.")
    lr: float = Field(5e-7, gt=0, description="Peak learning rate.")
    optimizer: Literal["rmsprop", "adamw"] = Field(
        "rmsprop", description="Optimiser (torch defaults; the paper: RMSprop)."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Part of the schedule spent warming up; linear decay to 0 after it."
    )
    schedule_epochs: float = Field(2.0, gt=0, description="Epochs that the learning-rate schedule is laid out for.")
    stop_epoch: float = Field(
        0.0,
        ge=0,
        description="Epochs after which training stops; 0 is the whole schedule. (Published: 6, stopped at 2.)",
    )
    global_batch: int = Field(64, ge=1, description="Pairs in one optimiser step.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping by norm; 0 is none.")
    max_length: int = Field(1024, ge=2, description="Tokens of prompt and answer together.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16: autocast; weights, log-probs and loss stay float32."
    )
    collation: Literal["exact", "reference"] = Field(
        "exact",
        description="exact: what was sampled is scored. reference: the published code's tokenisation, masks and cuts.",
    )


class Config(Section):
    """What θ_{t+1} depends on besides θ_t, the pairs and the opponent's log-probs."""

    finetune: Finetune
    chat: ChatSection
    seed: int


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Train on the train pairs; give headline figures. Raises BadInput where pairs and scores do not fit together."""
    from spin_core import models
    from spin_core.collate import encode_pairs
    from spin_core.training import train, write_results

    models.apply_threads(job.runtime)
    source, settings = cast(Path, inputs["model"]), _score_settings(config.finetune)
    pairs, opponent = _pairs_and_scores(inputs, config, job)
    chat = models.load_chat(source, config.chat)
    encoded = encode_pairs(pairs, chat, settings, job)
    models.release_opponent()
    model = models.load_model(source, "cpu", train=True)  # accelerate knows which GPU is this process's
    objective = _objective(encoded, opponent, chat.tokenizer.pad_token_id, config.finetune)
    history, resumed_at = train(model, objective, _plan(config, len(pairs)), job, "finetune")
    write_results(model, history, source, job.out)
    last = history[-1]
    return {
        "steps": len(history),
        "resumed_at": resumed_at,
        "pairs": len(pairs),
        "loss/first": history[0]["loss"],
        "loss/last": last["loss"],
        "rewards/margins": last["rewards/margins"],
        "rewards/accuracies": last["rewards/accuracies"],
    }


def _objective(encoded: list, opponent: list[tuple[float, float]], pad_id: int, part: Finetune) -> SpinPairs:
    import torch

    from spin_core.objectives import SpinPairs

    scores = torch.tensor(opponent, dtype=torch.float32).view(-1, 2)
    reference = part.collation == "reference"
    return SpinPairs(encoded, scores, pad_id, part.beta, part.loss, part.precision, reference)


def _plan(config: Config, examples: int) -> Plan:
    from spin_core.training import Plan

    part = config.finetune
    return Plan(
        lr=part.lr, optimizer=part.optimizer, weight_decay=part.weight_decay, warmup_ratio=part.warmup_ratio,
        schedule_epochs=part.schedule_epochs, stop_epoch=part.stop_epoch, global_batch=part.global_batch,
        max_grad_norm=part.max_grad_norm, seed=config.seed, examples=examples,
    )  # fmt: skip


def _score_settings(part: Finetune) -> Score:
    return Score(max_length=part.max_length, precision=part.precision, collation=part.collation)


def _pairs_and_scores(inputs: Inputs, config: Config, job: Job) -> tuple[list[Pair], list[tuple[float, float]]]:
    """The train pairs of all trees and the opponent's log-probs (real, generated) of each.

    Raises BadInput where scores are not those of these pairs under this model with these settings.
    """
    trees, scores = cast(list[Path], inputs["pairs"]), cast(list[Path], inputs["logps"])
    if len(trees) != len(scores):
        raise BadInput(
            f"finetune was given {len(trees)} pairs trees and {len(scores)} score trees; give one score tree for each"
        )
    pairs: list[Pair] = []
    opponent: list[tuple[float, float]] = []
    for tree, score, digest in zip(trees, scores, job.digests["pairs"], strict=True):
        own = read_pairs(tree / TRAIN_FILE)
        expected = {
            "model": job.digests["model"], "pairs": digest,
            "chat": config.chat.model_dump(), "score": _score_settings(config.finetune).model_dump(),
        }  # fmt: skip
        _check_scores(score / "scores.json", expected)
        opponent += _read_scores(score / "logps.parquet", [pair.id for pair in own])
        pairs += own
    return pairs, opponent


def _check_scores(path: Path, expected: dict) -> None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable ({error}); run score on these pairs again") from error
    for name, value in expected.items():
        if found.get(name) != value:
            raise BadInput(
                f"{path}: `{name}` is {found.get(name)}, this finetune has {value}; these log-probs are of other "
                "pairs, another model or other settings, so run score again with this profile"
            )


def _read_scores(path: Path, ids: Sequence[str]) -> list[tuple[float, float]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = [row for row in pq.read_table(path).to_pylist() if row["split"] == "train"]
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path}: not readable ({error}); run score on these pairs again") from error
    if [row["id"] for row in rows] != list(ids):
        raise BadInput(
            f"{path}: its {len(rows)} train ids are not the {len(ids)} of the pairs; run score on these pairs again"
        )
    return [(row["real"], row["generated"]) for row in rows]
