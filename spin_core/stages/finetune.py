"""One SPIN iteration: weights in, weights out (paper, eq. 4.7).

What it is *not*: no generation, no evaluation, no opponent in memory (its log-probs come from score). Trains on the
train split of all pairs trees together. With `lora` an adapter is trained
on θ_t and merged into it, so that θ_{t+1} is a whole model, and the next iteration's opponent, in either case.

inputs   `model`: θ_t · `pairs`: pairs trees, newest first · `logps`: their score trees under θ_t, in the same order
outputs  a model directory (safetensors in the dtype of θ_t's files) with `metrics.jsonl`, one line per optimiser
         step, and a model card (README.md: the chain of training steps)
assumes  `job.digests` has the inputs' digests, which the score trees must name
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from pydantic import Field, field_validator, model_validator

from spin_core.config.base import Section
from spin_core.data.rows import TRAIN_FILE, Pair, read_pairs
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.modeling.chat import ChatSection
from spin_core.stages.score import Score, read_scores
from spin_core.store.keys import config_payload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spin_core.training.loop import Plan
    from spin_core.training.objectives import SpinPairs

VERSION = 2


class Lora(Section):
    """`finetune.lora:` in a profile. It has no dropout: SPIN compares log-probs, which must be those of one model."""

    rank: int = Field(
        16,
        ge=1,
        description="Setting any of these trains an adapter B·A of this rank per layer, not all weights, and merges "
        "it; it wants a far larger lr, such as 1e-4. A bfloat16 model is saved as bfloat16, which rounds small updates "
        "off: start from float32 to keep them.",
    )
    alpha: int = Field(16, ge=1, description="The update is alpha/rank times B·A.")
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Layers that get an adapter: all-linear (but the output layer), or names of layers."
    )
    quantize: Literal["none", "nf4"] = Field(
        "none",
        description="nf4 (QLoRA): train and score on θ_t in 4 bit; needs CUDA and bitsandbytes. The adapter is merged "
        "into the unquantised θ_t, with which the next answers are generated.",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if value == "all-linear":
            return value
        if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
            raise ValueError("give all-linear or a list of layers' names, such as [q_proj, v_proj]")
        return sorted(set(value))


class Finetune(Section):
    """`finetune:` in a profile."""

    loss: Literal["sigmoid", "hinge"] = Field("sigmoid", description="sigmoid: −log σ(z); hinge: max(0, 1 − z).")
    beta: float = Field(0.1, gt=0, description="λ of the paper: weight of the log-ratio in the loss.")
    length_normalised: bool = Field(
        False,
        description="Divide each log-ratio by its answer's tokens before beta (which then has to be larger).",
        json_schema_extra={"omit_default": True},
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="Adds this times the real answers' NLL per token to the loss, against collapse (RPO: 1).",
        json_schema_extra={"omit_default": True},
    )
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
    lora: Lora | None = Field(
        None,
        description="Train a low-rank adapter and merge it into the model; leave out to train all weights.",
        json_schema_extra={"omit_default": True},
    )

    engine_logps: bool = Field(
        False,
        description="Take the opponent's log-probs of its own answers as the engine found them while it sampled "
        "(`generate.logprobs: true`), where a sample agrees with score's own; float32 and exact collation only.",
        json_schema_extra={"omit_default": True},
    )

    @model_validator(mode="after")
    def _nf4_computes_in_bfloat16(self) -> Finetune:
        if self.lora and self.lora.quantize == "nf4" and self.precision != "bfloat16":
            raise ValueError("lora.quantize nf4 computes in bfloat16; set precision: bfloat16")
        return self


class Config(Section):
    """What θ_{t+1} depends on besides θ_t, the pairs and the opponent's log-probs."""

    finetune: Finetune
    chat: ChatSection
    seed: int


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Train on the train pairs; give headline figures. Raises BadInput where pairs and scores do not fit together."""
    from spin_core.analysis.training_alarms import alarms, watch
    from spin_core.modeling import loading
    from spin_core.modeling.collate import encode_pairs
    from spin_core.report.model_card import write_card
    from spin_core.training.loop import train, write_results

    loading.apply_threads(job.runtime)
    source, settings = cast(Path, inputs["model"]), score_settings(config.finetune)
    pairs, opponent = _pairs_and_scores(inputs, config, job)
    chat = loading.load_chat(source, config.chat)
    encoded = encode_pairs(pairs, chat, settings, job)
    loading.release_opponent()
    model = _trainable(source, config, job)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    objective, pad_id = _objective(encoded, opponent, config.finetune), chat.tokenizer.pad_token_id
    plan, precision = _plan(config, len(pairs)), config.finetune.precision
    watching = watch(plan.stop_step, job.note)
    history, resumed_at, strategy = train(model, pad_id, precision, objective, plan, job, "finetune", watching)
    write_results(_whole(model, source, config.finetune), history, source, job.out, strategy)
    write_card(job, "finetune", config_payload(config), source, history)
    last = history[-1]
    return {
        "steps": len(history),
        "resumed_at": resumed_at,
        "pairs": len(pairs),
        "trainable": trainable,
        "loss/first": history[0]["loss"],
        "loss/last": last["loss"],
        "rewards/margins": last["rewards/margins"],
        "rewards/accuracies": last["rewards/accuracies"],
        "alarms": alarms(history, plan.stop_step),
    }


def _trainable(source: Path, config: Config, job: Job) -> PreTrainedModel:
    """θ_t, of which all weights ask for gradients, or those of a new adapter in it."""
    from spin_core.training.loop import load_trainable, make_accelerator

    part = config.finetune.lora
    if part is None:
        return load_trainable(source, job)
    from spin_core.modeling.loading import load_model
    from spin_core.modeling.lora import add_adapter, seed_of

    device = "cpu" if part.quantize == "none" else make_accelerator(job).device  # quantised where it is used
    model = load_model(source, device, train=True, quantize=part.quantize)
    add_adapter(model, part, seed_of(config.seed, cast(str, job.digests["model"])))
    return model


def _whole(model: PreTrainedModel, source: Path, part: Finetune) -> PreTrainedModel:
    """The trained model without an adapter. Of several processes only the first merges, as it writes."""
    from spin_core.runtime import process_group

    if part.lora is None or process_group.rank() != 0:
        return model
    from spin_core.modeling.lora import merged

    return merged(model, source, part.lora)


def _objective(encoded: list, opponent: list[tuple[float, float]], part: Finetune) -> SpinPairs:
    import torch

    from spin_core.training.objectives import SpinPairs

    scores = torch.tensor(opponent, dtype=torch.float32).view(-1, 2)
    return SpinPairs(encoded, scores, part.beta, part.loss, part.sft_weight, part.length_normalised)


def _plan(config: Config, examples: int) -> Plan:
    from spin_core.training.loop import Plan

    part = config.finetune
    return Plan(
        lr=part.lr, optimizer=part.optimizer, weight_decay=part.weight_decay, warmup_ratio=part.warmup_ratio,
        schedule_epochs=part.schedule_epochs, stop_epoch=part.stop_epoch, global_batch=part.global_batch,
        max_grad_norm=part.max_grad_norm, seed=config.seed, examples=examples,
    )  # fmt: skip


def score_settings(part: Finetune) -> Score:
    """How the opponent's log-probs of this finetune are computed: as the policy's own."""
    quantize = part.lora.quantize if part.lora else "none"
    return Score(
        max_length=part.max_length,
        precision=part.precision,
        collation=part.collation,
        quantize=quantize,
        engine_logps=part.engine_logps,
    )


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
            "chat": config.chat.model_dump(), "score": config_payload(score_settings(config.finetune)),
        }  # fmt: skip
        _check_scores(score / "scores.json", expected)
        opponent += read_scores(score, "train", [pair.id for pair in own])
        pairs += own
    return pairs, opponent


def _check_scores(path: Path, expected: dict) -> None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable ({error}); run score on these pairs again") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: a JSON object is needed; run score on these pairs again")
    for name, value in expected.items():
        if found.get(name) != value:
            raise BadInput(
                f"{path}: `{name}` is {found.get(name)}, this finetune has {value}; these log-probs are of other "
                "pairs, another model or other settings, so run score again with this profile"
            )
