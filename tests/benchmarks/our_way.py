"""How spinloop trains: the score stage once, then prompt-shared packed steps without an opponent in memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from spin_core.config.runtime import Runtime
from spin_core.job import Job
from tests.benchmarks.bench_work import Watch, Work


def run(work: Work, watch: Watch, model: PreTrainedModel | None = None) -> list[float]:
    """The full training run, as the stages score and finetune do it, the probing of the model included; returns the
    loss of each optimiser step."""
    from spin_core.config.finetune import Finetune
    from spin_core.modeling.loading import load_model
    from spin_core.modeling.opponent import release_opponent
    from spin_core.training.loop import train
    from spin_core.training.objectives import SpinPairs

    with tempfile.TemporaryDirectory() as folder:
        job, pairs = _job(work, Path(folder), watch), work.pairs
        opponent = _score(work, job, watch, model) if work.scored else torch.zeros(len(pairs), 2)
        release_opponent()
        model = model or load_model(work.path, work.device, train=True)
        watch.weights(model)
        members = [np.array(own) for own in work.together] or None
        objective = SpinPairs(pairs, opponent[:, None], Finetune(beta=work.beta), members)
        with watch.part("train"):
            history, *_ = train(model, work.pad_id, objective, work.plan, job, "train", lambda history: watch.step())
        return [metrics["loss"] for metrics in history]


def _job(work: Work, folder: Path, watch: Watch) -> Job:
    chosen = {"micro_tokens": work.micro_tokens} if work.micro_tokens else {}
    runtime = Runtime(
        device=work.device, threads=work.threads, checkpoint_every=0, attn_implementation=work.kernel, **chosen
    )
    return Job(folder, folder, runtime, send=watch.event)


def _score(work: Work, job: Job, watch: Watch, model: PreTrainedModel | None) -> torch.Tensor:
    """The opponent's log-probs float32 [N, 2] by the score stage's own pass; loading its model is not in the time."""
    from spin_core.config.finetune import Score
    from spin_core.stages.score import logps_of, logps_under

    settings = Score(max_length=work.longest, precision=work.precision, collation="exact")
    # As in the product: all pair sets of an iteration in one pass, a prompt and its real answer once.
    members = work.together or [[i] for i in range(len(work.pairs))]
    groups = [[work.pairs[own[0]][0], *(work.pairs[i][1] for i in own)] for own in members]
    if model is None:
        shortest = min(groups, key=lambda group: sum(map(len, group)))
        logps_of(work.path, [shortest], settings, job, "load")
    with watch.part("score"):
        if model is None:
            logps = logps_of(work.path, groups, settings, job, "score")
        else:
            logps = logps_under(model, groups, settings, job, "score")
    scored, begin = torch.zeros(len(work.pairs), 2), 0
    for own in members:
        real, *generated = logps.values[begin : begin + 1 + len(own)]
        begin += 1 + len(own)
        for i, one in zip(own, generated, strict=True):
            scored[i] = torch.tensor([real, one], dtype=torch.float32)
    return scored
