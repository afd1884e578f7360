"""One optimiser step of the reference's trainer, and the project's own scores and strategy of the same model and
pairs."""

import json
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from training_data import GOLDEN
from transformers import PreTrainedModel

from spin_core.config.finetune import Finetune, Score
from spin_core.job import Job
from spin_core.modeling.chat import reference_texts
from spin_core.modeling.collate import encode_reference
from spin_core.modeling.loading import load_model, load_tokenizer
from spin_core.modeling.logprobs import Policy
from spin_core.stages.score import logps_of
from spin_core.training.loop import TrainingPlan, make_accelerator, make_strategy
from spin_core.training.objectives import SpinPairs
from spin_core.training.strategy import Strategy

ALL = np.arange(4)


def golden_step(policy: Path) -> dict[str, Any]:
    """step.json, with each batch's pairs as the project makes them from its messages."""
    data, tokenizer = json.loads((GOLDEN / "step.json").read_text()), load_tokenizer(policy)
    for batch in data["batches"]:
        texts = [reference_texts(row, tokenizer) for row in batch["rows"]]
        lengths = data["max_length"], data["max_prompt_length"], data["truncation_mode"]
        batch["pairs"] = [encode_reference(text, tokenizer, *lengths) for text in texts]
    return data


def golden_scores(opponent: Path, batch: dict, job: Job) -> Tensor:
    """The opponent's log-probs [4, 2] of a golden batch, as `score` makes them."""
    settings = Score(max_length=112, precision="float32", collation="reference")
    logps = logps_of(opponent, batch["pairs"], settings, job, "score").values
    return torch.tensor(logps, dtype=torch.float32).view(4, 2)


def strategy_of(path: Path, job: Job, clip: float = 0.0) -> tuple[Strategy, PreTrainedModel]:
    """The project's strategy of the model in `path`, on the job's device, and that model. Raises AssertionError where
    it is not computed as the job asks for."""
    accelerator = make_accelerator(job)
    model: Any = load_model(path, "cpu", train=True).to(accelerator.device)
    policy = Policy(model, 3, "float32").settle(112, job.runtime, _refuse)
    part = Finetune(lr=1e-3, warmup_ratio=0.0, schedule_epochs=1.0, global_batch=4, max_grad_norm=clip)
    return make_strategy(policy, TrainingPlan(part, seed=0, examples=4), job, accelerator), model


def objective_of(batch: dict, opponent: Tensor, beta: float = 0.1, loss: Any = "sigmoid") -> SpinPairs:
    return SpinPairs(batch["pairs"], opponent[:, None], Finetune(beta=beta, loss=loss))


def _refuse(note: str) -> NoReturn:
    raise AssertionError(note)
