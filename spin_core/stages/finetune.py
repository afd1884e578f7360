"""One SPIN iteration: weights in, weights out (paper, eq. 4.7).

What it is *not*: no generation, no evaluation, no opponent in memory (the reference log-probs come from score).
Trains on the train split of all pairs trees together. With `lora` an adapter is trained on θ_t and merged into it, so
that θ_{t+1} is a plain model, and the next iteration's opponent, in either case.

inputs   `model`: θ_t · `pairs`: trees with tokens of pairs, newest first · `logps`: their score trees under θ_t, in the
         same order
outputs  a model directory (safetensors in the dtype of θ_t's files) with `metrics.jsonl`, one line per optimiser
         step, and a model card (README.md: the chain of training steps)
assumes  `job.digests` has the inputs' digests, which the score trees must name
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spin_core.config.base import Section
from spin_core.config.finetune import Finetune, score_settings
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.stages.score import read_scores
from spin_core.store.keys import config_payload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spin_core.modeling.collate import Groups

NAME = "finetune"
VERSION = 3


class Config(Section):
    """What θ_{t+1} depends on besides θ_t, the pairs and the reference log-probs."""

    finetune: Finetune
    seed: int


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Train on the train pairs; give headline figures. Raises BadInput where pairs and scores do not fit together."""
    import torch

    from spin_core.analysis.training_alarms import alarms, watch
    from spin_core.modeling import loading
    from spin_core.modeling.collate import note_cuts
    from spin_core.modeling.opponent import release_opponent
    from spin_core.modeling.packing import PADDING
    from spin_core.report.model_card import write_card
    from spin_core.training.loop import TrainingPlan, train, write_results
    from spin_core.training.objectives import SpinPairs

    loading.apply_threads(job.runtime)
    source, part = cast(Path, inputs["model"]), config.finetune
    pairs, opponent = _pairs_and_scores(inputs, config, job)
    cut = note_cuts(pairs, "train", "finetune.max_length", job)
    release_opponent()
    model = _trainable(source, config, job)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    scores = torch.tensor(opponent, dtype=torch.float32).view(-1, 2)
    objective = SpinPairs(pairs, scores, part.beta, part.loss, part.sft_weight, part.length_normalised)
    plan = TrainingPlan(part, config.seed, len(pairs))
    watching = watch(plan.stop_step, job.note)
    history, resumed_at, strategy = train(model, PADDING, objective, plan, job, "finetune", watching)
    write_results(_merged(model, source, part), history, source, job.out, strategy)
    write_card(job, "finetune", config_payload(config), source, history)
    last = history[-1]
    return {
        "steps": len(history),
        "resumed_at": resumed_at,
        "pairs": len(pairs),
        "trainable": trainable,
        **{f"cut/{name}": count for name, count in cut.items()},
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


def _merged(model: PreTrainedModel, source: Path, part: Finetune) -> PreTrainedModel:
    """The trained model without an adapter. Of several processes only the first merges, as it writes."""
    from spin_core.runtime import process_group

    if part.lora is None or process_group.rank() != 0:
        return model
    from spin_core.modeling.lora import merged

    return merged(model, source, part.lora)


def _pairs_and_scores(inputs: Inputs, config: Config, job: Job) -> tuple[Groups, list[tuple[float, float]]]:
    """The train pairs of all trees and the reference log-probs (real, generated) of each.

    Raises BadInput where scores are not those of these pairs under this model with these settings.
    """
    from spin_core.modeling.collate import read_groups

    trees, scores = cast(list[Path], inputs["pairs"]), cast(list[Path], inputs["logps"])
    if len(trees) != len(scores):
        raise BadInput(
            f"finetune was given {len(trees)} pairs trees and {len(scores)} score trees; give one score tree for each"
        )
    opponent: list[tuple[float, float]] = []
    settings = score_settings(config.finetune)
    for tree, score, digest in zip(trees, scores, job.digests["pairs"], strict=True):
        expected = {"model": job.digests["model"], "pairs": digest, "score": config_payload(settings)}
        _check_scores(score / "scores.json", expected)
        opponent += read_scores(score, "train", read_groups([tree], "train", settings.max_length).ids)
    return read_groups(trees, "train", settings.max_length), opponent


def _check_scores(path: Path, expected: dict[str, Any]) -> None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable ({error}); run score on these pairs again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: a JSON object is needed; run score on these pairs again")
    for name, value in expected.items():
        if content.get(name) != value:
            raise BadInput(
                f"{path}: `{name}` is {content.get(name)}, this finetune has {value}; these log-probs are of other "
                "pairs, another model or other settings, so run score again with this profile"
            )
