"""Peak bytes of torch's tensors in a real step of a made-up Llama, measured in a process of its own.

How: torch's profiler reports each allocation and release of its CPU allocator, in bytes and in order, those inside
kernels too; their running sum is what is alive, and its maximum the peak. It is what `torch.cuda.max_memory_allocated`
is on a GPU. The model is made while the profiler looks, so that its weights are counted. Not counted: the interpreter,
libraries, and what numpy or oneDNN take for themselves.

    python -m tests.estimate.measured '{"shape": {…}, "stage": "finetune", …}'  →  one line {"peak": bytes, …}
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spin_core.estimate.architecture import Architecture
from spin_core.runtime.launch import free_port

Groups = Sequence[tuple[int, Sequence[int]]]
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Case:
    """One measurement. `groups`: (tokens of the prompt, of each answer) of every example of a step."""

    name: str
    shape: Architecture
    stage: str
    groups: Groups = ()
    tokens: int = 1
    """`runtime.micro_tokens` of finetune, `score_tokens` of score."""
    precision: str = "float32"
    checkpointing: bool = False
    optimizer: str = "rmsprop"
    lora: int = 0
    slots: int = 0
    new: int = 0
    prompts: Sequence[int] = field(default_factory=tuple)
    processes: int = 1
    sharding: str = "none"
    offload: str = "none"


def measure(case: Case) -> dict[str, float]:
    """`peak` (bytes) of the case, by processes of its own: of the first of them."""
    command = [sys.executable, "-m", "tests.estimate.measured", json.dumps(asdict(case))]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if case.processes > 1:
        env |= {"WORLD_SIZE": str(case.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        env |= {"ACCELERATE_USE_CPU": "true", "ACCELERATE_TORCH_DEVICE": "cpu"}
    running = []
    for rank in range(case.processes):
        own = env | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if case.processes > 1 else {})
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, cwd=ROOT, env=own, **piped))
    try:
        message = [process.communicate(timeout=280) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, problem) in zip(running, message, strict=True):
        if process.returncode:
            raise RuntimeError(f"{case.name}: the measurement failed:\n{problem[-3000:]}")
    return json.loads(message[0][0].splitlines()[-1])


def peak_of(work: Callable[[], Any]) -> tuple[int, list[int]]:
    """The largest sum of what torch had allocated at once while `work` ran, in bytes, and the curve that it is of."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # what is released inside must have been allocated inside
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    live, curve = 0, []
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        curve.append(live)
    return max(curve), curve


def llama(shape: Architecture) -> Any:
    """An untrained Llama of the shape, float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, tie_word_embeddings=shape.tied, max_position_embeddings=32768,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _examples(case: Case) -> list:
    import numpy as np

    from spin_core.modeling.collate import Tokens

    draws, words, made = np.random.default_rng(0), case.shape.vocab, []
    for prompt, answers in case.groups:
        ids = [draws.integers(3, words, n) for n in (prompt, *answers)]
        made.append(tuple(Tokens(np.r_[ids[0], answer].astype(np.int32), prompt) for answer in ids[1:]))
    return made


def _finetune(case: Case, saved: Path = Path()) -> Any:
    """Two optimiser steps, the second with the optimiser's state there from the first."""
    import torch

    from spin_core.config.finetune import Finetune, Lora
    from spin_core.config.runtime import Compute, Runtime
    from spin_core.job import Job
    from spin_core.training.loop import TrainingPlan, load_trainable, train
    from spin_core.training.objectives import AnswerRows, SpinPairs

    pairs = _examples(case)
    runtime = Runtime(
        device="cpu", threads=1, micro_tokens=case.tokens, gradient_checkpointing=case.checkpointing,
        checkpoint_every=0,
        compute=Compute(processes=case.processes, sharding=case.sharding, offload=case.offload),
    )  # fmt: skip
    if case.sharding in PARTS:
        model = load_trainable(saved, Job(saved, saved, runtime))
        gc.collect()  # what the first process read the files into
    else:
        model = llama(case.shape).train()
    if case.lora:
        from spin_core.modeling.lora import add_adapter

        model.requires_grad_(False)
        add_adapter(model, Lora(rank=case.lora), 0)
    rows = [group[0] for group in pairs if len(group) == 1]
    objective = AnswerRows(rows) if rows else SpinPairs(pairs, torch.zeros(len(pairs), 1, 2), Finetune())
    part = Finetune(
        lr=1e-6, optimizer=case.optimizer, warmup_ratio=0.0, schedule_epochs=2.0, global_batch=len(pairs),
        precision=case.precision,
    )  # fmt: skip
    plan = TrainingPlan(part, seed=0, examples=len(pairs))
    with tempfile.TemporaryDirectory() as folder:
        train(model, 0, objective, plan, Job(Path(folder), Path(folder), runtime), "finetune")
    return model


def _score(case: Case) -> Any:
    """What `stages.score.logps_of` does, on a model that is not read from a disk."""
    import torch

    from spin_core.config.runtime import Runtime
    from spin_core.modeling.logprobs import Policy, micro_batches

    groups = _examples(case)
    model = llama(case.shape).eval().requires_grad_(False)
    longest = max(len(tokens) for group in groups for tokens in group)
    policy = Policy(model, 0, case.precision).settle(longest, Runtime(device="cpu", score_tokens=case.tokens))
    costs = [policy.cost(group) for group in groups]
    with torch.inference_mode(), policy.autocast():
        for part in micro_batches(costs, case.tokens, policy.packed):
            policy(policy.batch([groups[i] for i in part])).tolist()
    return model


def _generate(case: Case) -> Any:
    """The transformers engine's slots."""
    import torch

    from spin_core.engines import Request, Sampling
    from spin_core.engines.decoding import Rate, Sampler
    from spin_core.engines.slots import answers
    from spin_core.job import Bar

    model = llama(case.shape).eval().requires_grad_(False)
    sampling = Sampling(1.0, 1.0, case.new, frozenset(), 0, max_prompt=max(case.prompts))
    requests = [Request(str(i), [3 + (i + j) % 90 for j in range(n)], i) for i, n in enumerate(case.prompts)]
    with torch.inference_mode():
        answers(model, requests, Sampler(sampling), case.slots, Rate(Bar(lambda event: None, "", len(requests), "")))
    return model


PARTS = ("zero3", "fsdp2")
"""Of which each process loads its part, from a folder."""
WAYS = {"finetune": _finetune, "score": _score, "generate": _generate}


def main(text: str) -> None:
    """Measure the case that `text` is, print the result."""
    import torch

    torch.set_num_threads(1)
    data = json.loads(text)
    case = Case(**{**data, "shape": Architecture(**data["shape"])})
    with tempfile.TemporaryDirectory() as folder:
        if case.sharding in PARTS:
            llama(case.shape).save_pretrained(folder)
            peak, curve = peak_of(lambda: _finetune(case, Path(folder)))
        else:
            peak, curve = peak_of(lambda: WAYS[case.stage](case))
    if path := os.environ.get("SPINLOOP_CURVE"):
        Path(path).write_text(json.dumps(curve))
    print(json.dumps({"peak": peak}))


if __name__ == "__main__":
    main(sys.argv[1])
