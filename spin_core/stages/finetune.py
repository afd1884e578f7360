"""One SPIN iteration: weights in, weights out (paper, eq. 4.7).

What it is *not*: no generation, no evaluation, no second model in memory (the reference log-probs come from score).
Trains on the train split of all pairs trees together, by `finetune.loss` (docs/objectives.md). With `lora` an adapter
is trained on θ_t and merged into it, so that θ_{t+1} is a plain model, and the next iteration's opponent, in either
case.

inputs   `model`: θ_t · `pairs`: trees with tokens of pairs, oldest first · `logps`: their score trees, in the order of
         `spin_core.config.finetune.scored`: under θ_t, then under each further model (none where the loss is
         reference-free) · for tspin from iteration 1 on `first`: the pairs tree of iteration 0
outputs  a model directory (safetensors in the dtype of θ_t's files) with `metrics.jsonl`, one line per optimiser
         step, and a model card (README.md: the chain of training steps)
assumes  `job.digests` has the inputs' digests, which the score trees must name
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spin_core.config.base import Section
from spin_core.config.finetune import Finetune, score_settings
from spin_core.errors import BadInput
from spin_core.job import Inputs, Job
from spin_core.store.keys import config_payload

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from spin_core.modeling.collate import Groups
    from spin_core.training.objectives import SpinPairs

NAME = "finetune"
VERSION = 4
"""2: the model carries a card with its chain of training steps.
3: reads the ids of `tokenize`, and of generated answers those that were sampled.
4: pairs of identical answers are not computed, and are no longer in the means of rewards and log-probs."""


class Config(Section):
    """What θ_{t+1} depends on besides θ_t, the pairs and the reference log-probs."""

    finetune: Finetune
    seed: int

    @property
    def drawn_by(self) -> int:
        """The seed of this training alone."""
        return self.seed if self.finetune.seed is None else self.finetune.seed


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Train on the train pairs; give headline figures. Raises BadInput where pairs and scores do not fit together."""
    import numpy as np

    from spin_core.analysis.training_alarms import alarms, watch
    from spin_core.modeling import loading
    from spin_core.modeling.collate import note_cuts
    from spin_core.modeling.opponent import release_opponent
    from spin_core.modeling.packing import PADDING
    from spin_core.report.model_card import write_card
    from spin_core.training.loop import TrainingPlan, train, write_results

    loading.apply_threads(job.runtime)
    source, part = cast(Path, inputs["model"]), config.finetune
    objective = _objective(inputs, config, job)
    pairs = cast("Groups", objective.examples)
    cut = note_cuts(pairs, "train", "finetune.max_length", job)
    release_opponent()
    model = _trainable(source, config, job)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    counts = None if objective.members is None else np.array([len(own) for own in objective.members])
    plan = TrainingPlan(part, config.drawn_by, len(pairs), counts)
    watching = watch(plan.stop_step, part, job.note)
    history, resumed_at, strategy = train(model, PADDING, objective, plan, job, "finetune", watching)
    write_results(_merged(model, source, part), history, source, job.out, strategy)
    write_card(job, "finetune", config_payload(config), source, history)
    last = history[-1]
    return {
        "steps": len(history),
        "resumed_at": resumed_at,
        "pairs": len(pairs),
        **({} if counts is None else {"groups": len(counts)}),
        "identical": int(objective.identical.sum()),
        "tokens": int(pairs.targets().sum()),
        "trainable": trainable,
        **{f"cut/{name}": count for name, count in cut.items()},
        "loss/first": history[0]["loss"],
        "loss/last": last["loss"],
        "rewards/margins": last["rewards/margins"],
        "rewards/accuracies": last["rewards/accuracies"],
        "alarms": alarms(history, plan.stop_step, part),
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
    add_adapter(model, part, seed_of(config.drawn_by, cast(str, job.digests["model"])))
    return model


def _merged(model: PreTrainedModel, source: Path, part: Finetune) -> PreTrainedModel:
    """The trained model without an adapter. Of several processes only the first merges, as it writes."""
    from spin_core.runtime import process_group

    if part.lora is None or process_group.rank() != 0:
        return model
    from spin_core.modeling.lora import merged

    return merged(model, source, part.lora)


def _objective(inputs: Inputs, config: Config, job: Job) -> SpinPairs:
    """What is learned. Raises BadInput where the scores are not those that the loss needs of these pairs under these
    models with these settings."""
    from spin_core.modeling.examples import by_prompt, read_examples, reference_logps
    from spin_core.training.objectives import SpinPairs

    part, trees = config.finetune, cast(list[Path], inputs["pairs"])
    first = cast(Path, inputs["first"]) if "first" in inputs else None
    same = [digest == job.digests.get("first") for digest in job.digests["pairs"]]
    groups = read_examples(part, trees, first, same, job)
    members = by_prompt(groups) if part.order == "prompts" else None
    return SpinPairs(groups, reference_logps(part, groups, _scores(inputs, part, job)), part, members)


def _scores(inputs: Inputs, part: Finetune, job: Job) -> list[list[Any]]:
    """Of each model that scored, of each set of pairs: the reference log-probs (real, generated), [pairs, 2]."""
    import numpy as np

    from spin_core.modeling.collate import read_groups
    from spin_core.modeling.scores import read_scores, whose

    scores, sets = cast(list[Path], inputs["logps"]), list(cast(list[Path], inputs["pairs"]))
    digests = list(job.digests["pairs"])
    if "first" in inputs and not part.reference_free:
        sets.append(cast(Path, inputs["first"]))
        digests.append(cast(str, job.digests["first"]))
    most = {"tpaw": part.tpaw.players, "alpha": 2}.get(part.loss, 1)
    models, left = divmod(len(scores), len(sets))
    if left or not (models == 0 if part.reference_free else 1 <= models <= most):
        raise BadInput(
            f"finetune was given {len(sets)} pairs trees and {len(scores)} score trees; give "
            + ("none" if part.reference_free else "one score tree for each")
            + (f", under each of up to {most} models" if most > 1 else "")
            + f" (finetune.loss: {part.loss})"
        )
    made: list[list[Any]] = []
    for number in range(models):
        of = scores[number * len(sets) :][: len(sets)]
        known: dict[str, Any] = {} if number else {"model": job.digests["model"]}
        made.append([])
        for i, (score, tree, digest) in enumerate(zip(of, sets, digests, strict=True)):
            own = part.loss == "dft" and i < len(sets) - 1  # under the model that these answers were sampled from
            expected = {"pairs": digest, "score": config_payload(score_settings(part))} | ({} if own else known)
            content = whose(score, expected, NAME)
            known = known or {"model": content.get("model")}
            ids = read_groups([tree], "train", part.max_length).ids
            made[-1].append(np.array(read_scores(score, "train", ids), np.float64).reshape(-1, 2))
    return made
