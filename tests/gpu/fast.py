"""How fast: training by the reference's way, TRL's and ours with each attention kernel, in turn; where one step's time
goes; and sampling.

Ways are those of `make bench-train` (tests/benchmarks), in bfloat16, on random weights: SmolLM2-135M's shape, read from
a folder, and the largest of 7B, 3B and 1B that fits the card by the cost sheet, made on it (an adapter of rank 16
where all weights do not fit; the reference holds its opponent too, and has a row where that fits). All ways warm up
with two steps; then they run one after the other, again and again (A B C A B C), four steps each, the first of which is
not counted; figures are medians of steps, with the device's queue empty at each reading of the clock.

- *tokens/s*: useful tokens of a training step: without padding, each prompt once although there are two answers to it.
- *MFU*: useful operations over the card's dense bfloat16 peak (spin_core/estimate/gpus.yaml, from data sheets; an
  unlisted card has none). Useful operations are those of `spin_core.estimate.work.training_flops`: 6 for each weight of
  the layers and useful token (with an adapter 4: no gradients of the weights), 6 for each weight of the output layer
  and answer token, none for the embedding, and attention (12 · layers · width for each pair of tokens that sees one
  another, half as many under a causal mask).
- *pairs/s*: with scoring, which our way and TRL's do once and then train two epochs, and the reference does in
  every step.
- *GiB*: the most that torch had allocated in the two steps of the warm-up, weights included.

The aim is 45 % MFU from 3 billion weights on: `met` or `MISSED`, not a failure. A loss of SmolLM2's shape that differs
between the ways is one: then they do not train the same.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from spin_core.config.choices import Kernel
from spin_core.errors import StageFailed
from spin_core.estimate.architecture import Architecture
from spin_core.estimate.needs import GIB
from spin_core.estimate.text import weights
from tests.benchmarks import our_way, reference_way
from tests.benchmarks.bench_train import LOSS_TOLERANCE, loss_difference
from tests.benchmarks.bench_work import Watch, Work, synchronize
from tests.gpu import sizes
from tests.gpu.in_turn import Way, cells, free, in_turn
from tests.gpu.profile_step import Profiled
from tests.gpu.proof import Figures, Proof, Skip

TWO = 20
"""Bytes for each weight of the reference's way: both models, gradients, RMSprop's state and what its step computes
with."""


def largest_short(proof: Proof) -> Figures:
    """The largest shape that fits, short prompts."""
    return _largest(proof, "short", 0.5)


def small_short(proof: Proof) -> Figures:
    """SmolLM2's shape, short prompts."""
    return _small(proof, "short", 0.4)


def one_step(proof: Proof) -> Figures:
    """The ten kernels that take longest in one training step of the largest shape, each with its share of the time that
    the device works, and the share of the step in which it does nothing."""
    rows, batch = _rows(proof, sizes.TINY, "short")

    def use(of: sizes.Candidate) -> Figures:
        watch, made = Profiled(proof), sizes.model(proof, of)
        ids = sizes.draw(of.shape, "short", batch, proof.tiny)
        our_way.run(replace(sizes.work(proof, ids, batch, of.tokens), scored=False, epochs=3), watch, made)
        return {"model": _named(of), **watch.figures(proof.out / "step_profile.txt")}

    return _on_what_fits(proof, rows, batch, use)


def largest_beside_reference(proof: Proof) -> Figures:
    """The largest shape whose two models fit, as the reference needs them, short prompts; where that is the largest
    shape of all, `largest_short` has it."""
    rows, batch = _rows(proof, sizes.TINY, "short")
    first = next(sizes.candidates(proof, rows, batch), None)
    if first is None or _two_fit(proof, first):
        raise Skip("the row of the largest shape has the reference, or nothing fits")
    return _largest(proof, "short", 0.5, partial(_two_fit, proof))


def largest_long(proof: Proof) -> Figures:
    """The largest shape that fits, long prompts."""
    return _largest(proof, "long", 0.5)


def generation(proof: Proof) -> Figures:
    """Answers sampled from SmolLM2's shape: tokens/s of the reference's loop, of our transformers engine at two sizes
    of batch, and of vLLM where it is installed."""
    from spin_core.runtime import vllm_env
    from tests.benchmarks import bench_generate, generate_ways

    shape = sizes.small(proof)
    prompts = [prompt for prompt, *_ in sizes.draw(shape, "short", 6 if proof.tiny else 512, proof.tiny)]
    request = {
        "model": str(sizes.folder(proof, shape)), "device": str(proof.device), "threads": 0, "seed": 1, "stop_ids": [4],
        "pad_id": 0, "naive_batch": 32, "in_flight": 256, "prompts": prompts, "new": 8 if proof.tiny else 128,
    }  # fmt: skip
    ways = {
        "reference, batch 32": ("naive", 32), "ours, batch 32": ("transformers", 32),
        "ours, batch 256": ("transformers", 256),
    }  # fmt: skip
    figures: Figures = {"model": "SmolLM2-135M's shape, random weights", "prompts": len(prompts)}
    for name, (way, batch) in ways.items():
        sample = getattr(generate_ways, {"naive": "naive", "transformers": "engine"}[way])(
            {**request, "way": way, "batch": batch}
        )
        few = prompts[: min(len(prompts), 2 * batch)]
        sample(few[:4], 4, lambda count: None)
        began = time.perf_counter()
        answers = sample(few, request["new"], lambda count: None)
        synchronize()
        figures[f"{name}, tokens/s"] = sum(map(len, answers)) / (time.perf_counter() - began)
    if proof.device.type != "cuda" or not vllm_env.place("").exists():
        figures["vLLM"] = "not installed (.venv-vllm)"
        return figures
    from tqdm import tqdm

    result = bench_generate.child("vllm", {**request, "batch": 0}, tqdm(disable=True))
    figures["vLLM, tokens/s"] = result["tokens"] / result["wall"]
    return figures


def small_long(proof: Proof) -> Figures:
    """SmolLM2's shape, long prompts."""
    return _small(proof, "long", 0.9)


def _small(proof: Proof, name: str, share: float) -> Figures:
    shape = sizes.small(proof)
    rows, batch = _rows(proof, shape, name)
    work = sizes.work(proof, rows, batch, 8192, sizes.folder(proof, shape))
    ways: dict[str, Way] = {"ours sdpa": our_way.run, "reference": reference_way.run}
    absent: Figures = {}
    if importlib.util.find_spec("trl"):
        from tests.benchmarks import trl_way

        ways["TRL"] = trl_way.run
    else:
        absent["TRL"] = "not installed"
    kernels, without = _kernels(proof)
    ways |= {f"ours {kernel}": partial(_with_kernel, kernel) for kernel in kernels[1:]}
    results, more = in_turn(proof, work, ways, share * proof.left())
    first = results["ours sdpa"].losses
    for way, one in results.items():
        off = loss_difference(one.losses, first)
        assert off <= LOSS_TOLERANCE["bfloat16"], f"the losses of {way} differ from those of ours by {off:.2g} nats"
    figures = cells(proof, shape, 0, work, results)
    return {"model": "SmolLM2-135M's shape", "batch": batch, **figures, **absent, **without, **more}


def _largest(
    proof: Proof, name: str, share: float, suits: Callable[[sizes.Candidate], bool] = lambda of: True
) -> Figures:  # fmt: skip
    rows, batch = _rows(proof, sizes.TINY, name)

    def use(of: sizes.Candidate) -> Figures:
        made = sizes.model(proof, of)
        work = sizes.work(proof, sizes.draw(of.shape, name, len(rows), proof.tiny), batch, of.tokens)
        kernels, without = _kernels(proof)
        ways: dict[str, Way] = {"ours sdpa": partial(_with_kernel, "sdpa", model=made)}
        needed = 20 * of.shape.weights  # both models, gradients, RMSprop's state and what its step computes with
        if of.rank or (
            proof.device.type == "cuda" and needed > 0.8 * torch.cuda.mem_get_info()[0] + 4 * of.shape.weights
        ):
            without["reference"] = f"does not fit: {needed / 2**30:.0f} GiB before activations"
        else:
            ways["reference"] = partial(_reference, made)
        ways |= {f"ours {kernel}": partial(_with_kernel, kernel, model=made) for kernel in kernels[1:]}
        results, more = in_turn(proof, work, ways, share * proof.left())
        figures = cells(proof, of.shape, of.rank, work, results)
        return {"model": _named(of), "batch": batch, "tokens a pass": of.tokens, **figures, **without, **more}

    return _on_what_fits(proof, rows, batch, use, suits)


def _two_fit(proof: Proof, of: sizes.Candidate) -> bool:
    """Whether the reference's way fits, which trains all weights beside its opponent."""
    return not of.rank and TWO * of.shape.weights <= sizes.USED * sizes.card(proof).gib * GIB


def _reference(model: torch.nn.Module, work: Work, watch: Watch) -> list[float]:
    """The reference's way on a model that is in memory, with a copy as its opponent."""
    return reference_way.run(work, watch, model, copy.deepcopy(model).eval().requires_grad_(False))


def _with_kernel(kernel: Kernel, work: Work, watch: Watch, model: torch.nn.Module | None = None) -> list[float]:
    return our_way.run(replace(work, kernel=kernel), watch, model)


def _rows(proof: Proof, shape: Architecture, name: str) -> tuple[list[sizes.Row], int]:
    """Pairs of two steps, and how many a step has."""
    batch = 4 if proof.tiny else 32 if name == "short" else 16
    return sizes.draw(shape, name, 2 * batch, proof.tiny), batch


def _named(of: sizes.Candidate) -> str:
    how = f"LoRA of rank {of.rank}" if of.rank else "all weights"
    return f"{of.name} ({weights(of.shape.weights)} weights), {how}, random weights"


def _kernels(proof: Proof) -> tuple[list[Kernel], Figures]:
    """The attention kernels that can train here, and why not the others."""
    if proof.device.type != "cuda":
        return ["sdpa"], {"ours flex_attention": "trains on CUDA only", "ours flash_attention_2": "runs on CUDA only"}
    if importlib.util.find_spec("flash_attn"):
        return ["sdpa", "flash_attention_2", "flex_attention"], {}
    return ["sdpa", "flex_attention"], {"ours flash_attention_2": "flash-attn is not installed"}


def _on_what_fits(
    proof: Proof, rows: list[sizes.Row], batch: int, use: Callable[[sizes.Candidate], Figures],
    suits: Callable[[sizes.Candidate], bool] = lambda of: True,
) -> Figures:  # fmt: skip
    """What `use` gives on the first candidate that does fit, and those that did not although the sheet said so."""
    tried = []
    for of in filter(suits, sizes.candidates(proof, rows, batch)):
        try:
            return use(of) | ({"out of memory, though estimated to fit": ", ".join(tried)} if tried else {})
        except (StageFailed, torch.OutOfMemoryError) as error:
            if "memory" not in str(error):
                raise
            tried.append(of.name)
        free(proof)
    raise Skip(f"no shape of {', '.join(sizes.SHAPES)} fits this card, not with an adapter either")


CHECKS = (
    largest_short, small_short, one_step, generation, largest_beside_reference, largest_long, small_long,
)  # fmt: skip
