"""Generation: an engine gives the same answers to the same seeds, and how many it gives in batches of another size."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from training_data import job_at

from spin_core.engines import Answer, Request, Sampling
from spin_core.engines.table import ENGINES
from spin_core.modeling.opponent import release_opponent
from tests.gpu.proof import Check, Figures, Proof, Skip
from tests.gpu.shapes import saved


def same_seeds_same_answers(dtype: torch.dtype) -> Check:
    """Twice the same requests in one engine: every token is the same. Another batch size: the share of answers that
    are is a figure and no failure, as the rounding of another shape moves a draw that is close to a border."""

    def check(proof: Proof) -> Figures:
        theta = saved(proof, dtype, proof.folder("theta") / "model")
        figures: Figures = {}
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            first, again, other = (_answers(proof, theta, temperature, size) for size in (16, 16, 5))
            same = _share(first, again)
            assert same == 1, f"{name}: {1 - same:.1%} of the answers are others the second time"
            figures[f"{name}, batches of 5 for 16"] = _share(first, other)
        release_opponent()
        return figures

    check.__name__ = f"same_seeds_same_answers_{str(dtype).removeprefix('torch.')}"
    return check


def vllm_engine(proof: Proof) -> Figures:
    """vLLM's engine on CUDA: every answer the same the second time is not promised; the share that equals the
    transformers engine's is a figure."""
    if find_spec("vllm") is None:
        raise Skip("vllm is not installed in this interpreter")
    if proof.device.type != "cuda":
        raise Skip("vLLM's CUDA engine runs on CUDA")
    theta = saved(proof, torch.bfloat16, proof.folder("theta") / "model")
    ours = _answers(proof, theta, 1.0, 16)
    release_opponent()
    first, again = (_answers(proof, theta, 1.0, 16, "vllm") for _ in range(2))
    return {"the same again": _share(first, again), "as the transformers engine": _share(first, ours)}


def _answers(proof: Proof, theta: Path, temperature: float, size: int, engine: str = "transformers") -> list[Answer]:
    draws, new = np.random.default_rng(4), 8 if proof.tiny else 64
    prompts = [draws.integers(5, 500, int(draws.integers(3, 40))).tolist() for _ in range(12 if proof.tiny else 64)]
    requests = [Request(f"{i:03}", prompt, 1000 + i) for i, prompt in enumerate(prompts)]
    job = job_at(
        proof.folder("answers"),
        {},
        device=proof.device.type,
        generate_batch=size,
        gpu_memory=0.3,
        requests_in_flight=size,
    )
    how = Sampling(temperature, 1.0, new, frozenset([2]), 3, max_prompt=40)
    return ENGINES[engine].sample(theta, requests, how, job, "answers")  # type: ignore[index]


def _share(one: Sequence[Answer], other: Sequence[Answer]) -> float:
    return sum(a.token_ids == b.token_ids for a, b in zip(one, other, strict=True)) / len(one)


CHECKS: tuple[Check, ...] = (
    same_seeds_same_answers(torch.bfloat16),
    same_seeds_same_answers(torch.float32),
    vllm_engine,
)
