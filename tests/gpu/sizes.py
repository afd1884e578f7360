"""What the parts that measure work on: shapes of models with random weights, pairs of random token ids, the card and
what fits it.

What a step costs depends on sizes alone, so ids are drawn at random; their lengths are about those of GSM8K under a
chat template (short), and the same answers behind prompts of 260 to 508 tokens (long), as in tests/benchmarks.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import accelerate  # noqa: F401 - here, so that no check's time has it
import numpy as np
import peft  # noqa: F401
import torch
import transformers.models.llama.modeling_llama  # noqa: F401

from spin_core.config.finetune import Lora
from spin_core.config.profile import Config, parse
from spin_core.estimate import hardware, needs
from spin_core.estimate.activations import PassShape
from spin_core.estimate.architecture import Architecture, of_known
from spin_core.estimate.hardware import Gpu, Hardware
from spin_core.estimate.needs import CONTEXT, Setting
from spin_core.estimate.todo import Data
from tests.benchmarks.bench_work import Work
from tests.estimate.measured import llama
from tests.gpu.proof import Proof

Row = tuple[list[int], list[int], list[int]]
SHAPES = {"7B": "mistralai/Mistral-7B-v0.1", "3B": "meta-llama/Llama-3.2-3B", "1B": "meta-llama/Llama-3.2-1B"}
SMALL = "HuggingFaceTB/SmolLM2-135M"
TINY = Architecture(2, 64, 2, 1, 32, 128, 300, tied=True, bytes_on_disk=4)
RANK = 16
USED = 0.95
"""Of the memory that is free: what the estimate may fill."""
REHEARSED = Gpu("cpu", 64.0, 0.05, 0.05, 10.0, 1.0)
"""Stands for the CPU of a rehearsal: its speeds are made up, so that the code that compares has something to
compare."""


@dataclass(frozen=True)
class Candidate:
    """A shape and how it is trained. `rank`: of a LoRA, 0: all weights. `tokens`: of a training pass."""

    name: str
    shape: Architecture
    rank: int
    tokens: int


def small(proof: Proof) -> Architecture:
    """SmolLM2-135M's shape; in a rehearsal a tiny one."""
    return TINY if proof.tiny else _known(SMALL)


def _known(name: str) -> Architecture:
    shape = of_known(name)
    assert shape is not None, f"{name} is not in spin_core/estimate/architectures.yaml"
    return shape


def card(proof: Proof) -> Gpu:
    """The card with its speeds from spin_core/estimate/gpus.yaml, where it is listed; else speeds of 0."""
    if proof.device.type != "cuda":
        return REHEARSED
    there = torch.cuda.get_device_properties(proof.device)
    card = hardware.of_driver(f"{there.name}, {there.total_memory >> 20}")
    assert card is not None
    return card


def candidates(proof: Proof, rows: list[Row], batch: int) -> Iterator[Candidate]:
    """Those that fit the memory that is free now."""
    if proof.tiny:
        yield Candidate("tiny", TINY, 0, 512)
    else:
        yield from fitting(card(proof), torch.cuda.mem_get_info(proof.device)[0], rows, batch)


def fitting(gpu: Gpu, free: float, rows: list[Row], batch: int) -> Iterator[Candidate]:
    """Those that the cost sheet says fit `free` bytes, the largest shape first: of a shape all weights before an
    adapter, then the larger passes."""
    for name, hub_id in SHAPES.items():
        shape = _known(hub_id)
        for rank in (0, RANK):
            for tokens in (16384, 8192, 4096, 2048):
                need = needs.of("finetune", setting(gpu, shape, rows), profile(rows, batch, rank, tokens))
                if need.gpu - CONTEXT <= USED * free:
                    yield Candidate(name, shape, rank, tokens)
                    break


def model(proof: Proof, of: Candidate) -> torch.nn.Module:
    """The candidate on the device with random float32 weights, which ask for gradients as they are trained."""
    with proof.device:
        made = llama(of.shape).train()
    if of.rank:
        from spin_core.modeling.lora import add_adapter

        made.requires_grad_(False)
        add_adapter(made, Lora(rank=of.rank), 0)
    return made


def folder(proof: Proof, shape: Architecture, tokenizer: Path | None = None) -> Path:
    """A model directory with random weights in the dtype that such models are published in, and the tokenizer of the
    folder `tokenizer`, or one of characters."""
    from spin_core.modeling.loading import KEPT_FILES, load_tokenizer
    from spin_core.stages import demo_model

    out = proof.folder("model")
    if tokenizer is None:
        demo_model.write_settings(demo_model.Config(seed=0, context=2048), out)
    else:
        for file in tokenizer.iterdir():
            if file.name in KEPT_FILES:
                shutil.copyfile(file, out / file.name)
    words = load_tokenizer(out)  # beside the config.json that it came with
    with proof.device:
        made = llama(replace(shape, vocab=max(shape.vocab, len(words))))
    made.to(torch.bfloat16 if shape.bytes_on_disk == 2 else torch.float32)
    made.save_pretrained(out)
    for one in (made.config, made.generation_config):
        one.pad_token_id, one.eos_token_id = words.pad_token_id, words.eos_token_id
        one.save_pretrained(out)
    return out


def draw(shape: Architecture, name: str, count: int, tiny: bool, seed: int = 1) -> list[Row]:
    """`count` pairs as ids of (prompt, real answer, generated answer). `name`: short or long."""
    random, scale = np.random.default_rng([seed, name == "long"]), 8 if tiny else 1
    rows = []
    for _ in range(count):
        prompt = int(random.integers(260, 509) if name == "long" else random.integers(60, 161))
        real = int(np.clip(random.lognormal(np.log(110), 0.4), 30, 400))
        generated = int(np.clip(real * random.uniform(0.6, 1.6), 20, 400))
        sizes = [max(2, size // scale) for size in (prompt, real, generated)]
        rows.append(tuple(random.integers(5, shape.vocab, size).tolist() for size in sizes))
    return rows


def groups(rows: list[Row]) -> PassShape:
    """The rows as one packed pass: each prompt once, no padding."""
    return PassShape([(len(prompt), (len(real), len(generated))) for prompt, real, generated in rows])


def profile(
    rows: list[Row], batch: int, rank: int = 0, tokens: int = 16384, new: int = 0, **runtime: object
) -> Config:  # fmt: skip
    """A profile whose sheet is of these pairs: its limits are their longest, or `new` tokens of an answer."""
    longest = max(len(prompt) + max(len(real), len(generated)) for prompt, real, generated in rows)
    new = new or max(len(generated) for *_, generated in rows)
    lora = {"lora": {"rank": rank}} if rank else {}
    part = {"precision": "bfloat16", "max_length": longest, "global_batch": batch, "schedule_epochs": 2, **lora}
    return parse(
        {
            "model": {"path": "random"}, "dataset": {"path": "random"}, "iterations": 1, "finetune": part,
            "chat": {"max_prompt_length": max(len(prompt) for prompt, *_ in rows)},
            "generate": {"max_new_tokens": new}, "evaluate": {"max_new_tokens": new},
            "runtime": {"micro_tokens": tokens, "score_tokens": tokens, "checkpoint_every": 0, **runtime},
        },
        "tests/gpu",
    )  # fmt: skip


def setting(gpu: Gpu, shape: Architecture, rows: list[Row], test: int = 0) -> Setting:
    """What the cost sheet is given: one card and the rows' mean lengths, `test` of them held out."""
    prompt, *answers = (float(np.mean([len(row[i]) for row in rows])) for i in range(3))
    data = Data(len(rows) - test, test, prompt, float(np.mean(answers)), "drawn")
    return Setting(shape, data, Hardware(gpu, 1, True, ""))


def work(proof: Proof, rows: list[Row], batch: int, tokens: int, path: Path = Path()) -> Work:
    """A training run on these pairs in bfloat16, for the ways of tests/benchmarks."""
    return Work(
        model=str(path), rows=rows, pad_id=0, batch=batch, micro=min(8, batch), epochs=2, lr=5e-7,
        precision="bfloat16", device=str(proof.device), threads=0, micro_tokens=tokens,
    )  # fmt: skip
