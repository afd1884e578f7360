"""Training: LoRA that begins at its opponent, a run that is resumed, 200 steps without a number that is not finite,
and weights in shards, by the stages and the training loop themselves."""

from __future__ import annotations

import importlib
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from training_data import (
    CHAT,
    DIGESTS,
    copy_model,
    finetune_config,
    job_at,
    made_up_pairs,
    metrics_of,
    pairs_tree,
    scored,
)

from spin_core.config.finetune import Finetune, Lora, score_settings
from spin_core.config.runtime import Runtime
from spin_core.errors import Stopped
from spin_core.job import Job
from spin_core.modeling.collate import Groups, longest_of, read_groups
from spin_core.modeling.loading import load_model
from spin_core.modeling.logprobs import Policy
from spin_core.modeling.lora import add_adapter, merged
from spin_core.modeling.packing import PADDING
from spin_core.stages import finetune, score
from spin_core.training.loop import TrainingPlan, train
from spin_core.training.objectives import SpinPairs
from tests.gpu import kit
from tests.gpu.proof import Check, Figures, Proof, Skip
from tests.gpu.shapes import groups, small_model

RANK = {"rank": 4, "alpha": 8}


def lora_zero_step(proof: Proof) -> Figures:
    """An untrained adapter changes no bit: its policy is its opponent, and merged it is θ_t's file. On CUDA adding 0
    to a product is exact, so no tolerance."""
    theta, _, groups = _inputs(proof)
    runtime = Runtime(device=proof.device.type)
    plain, adapted = (load_model(theta, proof.device, train=train) for train in (False, True))
    add_adapter(adapted, Lora(**RANK), seed=9)
    policies = [Policy(model, 3, "float32").settle(128, runtime, _refuse) for model in (plain, adapted)]
    ours, theirs = (policy(policy.batch(groups[:4])).detach() for policy in policies)
    off = float((ours - theirs).abs().max())
    assert off == 0, f"the policy with an untrained adapter is {off:.2g} nats from its opponent"
    back = dict(merged(adapted, theta, Lora(**RANK)).named_parameters())
    for name, weight in load_file(theta / "model.safetensors").items():
        assert torch.equal(back[name].cpu(), weight), f"{name}: merging an untrained adapter changed it"
    return {"logps": off, "weights": len(back)}


def lora_nf4(proof: Proof) -> Figures:
    """QLoRA: the policy begins at its quantised opponent (margin within 0.02 nats, bfloat16), B·A of that rank is added
    to the unquantised weights, and untrained none is."""
    if find_spec("bitsandbytes") is None:
        raise Skip("bitsandbytes is not installed")
    if proof.device.type != "cuda":
        raise Skip("nf4 runs on CUDA")
    theta, tree, _ = _inputs(proof)
    outs = []
    for lr in (5e-3, 1e-300):  # a step of that size is 0 in float32
        config = finetune_config(lora={**RANK, "quantize": "nf4"}, precision="bfloat16", lr=lr)
        how = score.Config(score=score_settings(config.finetune), chat=CHAT)
        job = job_at(proof.folder("score"), {"model": "m", "pairs": "p"}, device="cuda")
        score.run({"model": theta, "pairs": tree}, how, job)
        run = job_at(proof.folder("nf4"), DIGESTS, device="cuda")
        finetune.run({"model": theta, "pairs": [tree], "logps": [job.out]}, config, run)
        outs.append(run.out)
    margin = abs(metrics_of(outs[0])[0]["rewards/margins"])
    assert margin <= 0.02, f"the first margin is {margin:.2g}: the opponent is not the quantised one"
    before, after, untrained = (load_file(path / "model.safetensors") for path in (theta, *outs))
    assert all(torch.equal(untrained[name], weight) for name, weight in before.items()), "untrained, it changed θ_t"
    moved = [after[name] - weight for name, weight in before.items() if not torch.equal(after[name], weight)]
    assert len(moved) == sum(name.endswith("proj.weight") for name in before), f"{len(moved)} weights moved"
    for difference in moved:
        sizes = np.linalg.svd(difference.double().numpy(), compute_uv=False)
        assert sizes[RANK["rank"]] < 1e-4 * sizes[0], "what was added has a higher rank than the adapter"
    return {"first margin": margin, "layers": len(moved)}


def resume_is_uninterrupted(proof: Proof) -> Figures:
    """A training that was asked to end and went on from its checkpoint against one that was not. On a CPU: the same
    bytes. On CUDA sums in another order are allowed what another implementation's are (tests/golden/README.md): 99.9 %
    of the weights within 1e-5, all within 1e-3; two runs without an interruption say how far they are apart."""
    theta, tree, _ = _inputs(proof)
    config = finetune_config(schedule_epochs=3.0, warmup_ratio=0.1)
    logps = scored(proof.folder("score"), theta, tree, config, device=proof.device.type)
    given: dict = {"model": theta, "pairs": [tree], "logps": [logps]}
    weights = []
    for stops in (None, None, 4):
        root = proof.folder("run")
        job = job_at(root, DIGESTS, device=proof.device.type, checkpoint_every=0)
        if stops:
            _end_after(job, stops)
            try:
                finetune.run(given, config, job)
                raise AssertionError("a training that was asked to end went on")
            except Stopped:
                job = job_at(root, DIGESTS, device=proof.device.type, checkpoint_every=0)
        summary = finetune.run(given, config, job)
        assert summary["resumed_at"] == (stops or 0), f"it went on from step {summary['resumed_at']}"
        weights.append(load_file(job.out / "model.safetensors"))
    repeated, resumed = (_differences(weights[0], other) for other in weights[1:])
    share = float((resumed > 1e-5).double().mean())
    assert resumed.max() <= (0 if proof.device.type == "cpu" else 1e-3), f"a weight is {resumed.max():.2g} off"
    assert share <= 1e-3, f"{share:.1%} of the weights are off by more than 1e-5"
    return {"resumed": float(resumed.max()), "repeated": float(repeated.max()), "share over 1e-5": share}


def nothing_that_is_not_finite(proof: Proof) -> Figures:
    """200 steps of bfloat16 training on SmolLM2's shape (20 of a tiny one): the loop refuses a loss or gradient that is
    not finite. It begins at its opponent (ln 2 within bfloat16's 0.02) and learns."""
    steps, model, some = 20 if proof.tiny else 200, small_model(proof, 0.02), groups(proof, 33)
    pairs = [tuple(group[:2]) for group in some if len(group) > 1]
    job = job_at(proof.folder("steps"), {}, device=proof.device.type, micro_tokens=8192, checkpoint_every=0)
    part = Finetune(lr=1e-4, warmup_ratio=0.05, precision="bfloat16", global_batch=8, schedule_epochs=1.0)
    each = math.ceil(len(pairs) / 8)
    part = part.model_copy(update={"schedule_epochs": steps / each})
    policy = Policy(model, PADDING, "bfloat16").settle(longest_of(pairs), job.runtime, _refuse)
    with torch.no_grad():
        opponent = torch.cat([policy(policy.batch([pair])).view(1, 2) for pair in pairs]).float().cpu()
    objective = SpinPairs(pairs, opponent[:, None], Finetune(beta=0.1))
    history, *_ = train(model, PADDING, objective, TrainingPlan(part, 1, len(pairs)), job, "steps")
    assert all(math.isfinite(value) for line in history for value in line.values()), "a metric is not finite"
    first, last = history[0]["loss"], history[-1]["loss"]
    assert abs(first - math.log(2)) <= 0.02, f"the first loss is {first:.4f}, not ln 2"
    assert last < first - 0.05, f"the loss went from {first:.4f} to {last:.4f}: it does not learn"
    return {"steps": len(history), "loss first": first, "loss last": last, "grad_norm last": history[-1]["grad_norm"]}


def in_shards(sharding: str, **compute: str) -> Check:
    """One process whose weights or optimiser are sharded (FSDP2 by torch, ZeRO by DeepSpeed), over NCCL on CUDA: the
    losses of an unsharded run within 1e-4, as in tests/training/test_sharded.py."""

    def check(proof: Proof) -> Figures:
        if sharding.startswith("zero") and find_spec("deepspeed") is None and not proof.tiny:
            _add_deepspeed(proof)
        if proof.tiny:
            raise Skip("a rehearsal leaves it to tests/training/test_sharded.py, which has it over gloo")
        theta, tree, _ = _inputs(proof)
        config = finetune_config(optimizer="adamw", weight_decay=0.01)
        logps = scored(proof.folder("score"), theta, tree, config, device=proof.device.type)
        given: dict = {"model": theta, "pairs": [tree], "logps": [logps]}
        curves = []
        for how in ({"sharding": "none"}, {"sharding": sharding, **compute}):
            job = job_at(proof.folder("shards"), DIGESTS, device=proof.device.type, compute=how)
            finetune.run(given, config, job)
            curves.append(np.array([line["loss"] for line in metrics_of(job.out)]))
        off = float(np.abs(curves[0] - curves[1]).max())
        assert off <= 1e-4, f"its losses are {off:.2g} off"
        return {"loss": off, "backend": torch.distributed.get_backend()}

    check.__name__ = "_".join(["one_process", sharding, *compute.values()])
    return check


def _add_deepspeed(proof: Proof) -> None:
    """The kit's, for this and later checks alone: transformers imports it wherever it is installed."""
    if proof.kit is None or not any((proof.kit / "deepspeed").glob("deepspeed-*.whl")):
        raise Skip("deepspeed is not installed, nor in a kit")
    sys.path.append(kit.install(proof.kit / "deepspeed", proof.work / "deepspeed"))
    importlib.invalidate_caches()


def _inputs(proof: Proof) -> tuple[Path, Path, Groups]:
    """The golden model, ten made-up pairs with their tokens, and these as groups."""
    root = proof.folder("inputs")
    theta, tree = copy_model(root / "theta"), pairs_tree(root / "pairs", made_up_pairs(10), [])
    weights = load_file(theta / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] = -0.0  # −0.0 + 0.0 would be 0.0
    save_file(weights, theta / "model.safetensors", metadata={"format": "pt"})
    return theta, tree, read_groups([tree], "train", 128)


def _end_after(job: Job, step: int) -> None:
    job.send = lambda event: job.ending.set() if event.get("label") == "finetune" and event["done"] == step else None


def _differences(one: dict[str, Any], other: dict[str, Any]) -> torch.Tensor:
    return torch.cat([(weight - other[name]).abs().flatten() for name, weight in one.items()])


def _refuse(note: str) -> None:
    raise AssertionError(note)


CHECKS: tuple[Check, ...] = (lora_zero_step, nothing_that_is_not_finite, resume_is_uninterrupted, lora_nf4)
SHARDED: tuple[Check, ...] = (
    in_shards("fsdp2"),
    in_shards("zero3"),
    in_shards("zero2", offload="optimizer"),
)
"""Last: they make torch's process group for good."""
