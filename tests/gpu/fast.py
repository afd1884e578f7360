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
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch

from spin_core.config.choices import Kernel
from spin_core.errors import StageFailed, one_line
from spin_core.estimate import work as operations
from spin_core.estimate.architecture import Architecture
from spin_core.estimate.needs import GIB
from spin_core.estimate.text import weights
from tests.benchmarks import our_way, reference_way
from tests.benchmarks.bench_train import LOSS_TOLERANCE, loss_difference
from tests.benchmarks.bench_work import Watch, Work, memory, reset_peak, synchronize
from tests.gpu import sizes
from tests.gpu.profile_step import Profiled
from tests.gpu.proof import NOT_REACHED, Figures, Proof, Skip

Way = Callable[[Work, Watch], list[float]]
AIM, FROM = 0.45, 3e9
ROUNDS = 3
TWO = 20
"""Bytes for each weight of the reference's way: both models, gradients, RMSprop's state and what its step computes
with."""
COMPILING = 40.0
"""Seconds that must be left for flex_attention, which is compiled at its first use."""
EPOCHS = 2
"""Of an iteration: how often a pair is trained on for one time that it is scored."""


@dataclass
class Steps(Watch):
    """When each optimiser step ended, and how long our scoring took once it had found out how to pack."""

    ends: list[float] = field(default_factory=list)
    opened: float = 0.0
    scored: float = 0.0

    def event(self, event: dict) -> None:
        super().event(event)
        if event.get("label") == "score":
            self.opened = self.opened or time.perf_counter()
            self.scored = time.perf_counter() - self.opened

    def step(self) -> None:
        synchronize()
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of each step but the first."""
        return [after - before for before, after in zip(self.ends, self.ends[1:], strict=False)]


@dataclass
class Measured:
    """What a way did. `scoring`: seconds of all pairs, in each run."""

    peak: int
    steps: list[float] = field(default_factory=list)
    scoring: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


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
    results, late = _in_turn(proof, work, ways, share * proof.left())
    first = results["ours sdpa"].losses
    for way, one in results.items():
        off = loss_difference(one.losses, first)
        assert off <= LOSS_TOLERANCE["bfloat16"], f"the losses of {way} differ from those of ours by {off:.2g} nats"
    figures = _figures(proof, shape, 0, work, results)
    return {"model": "SmolLM2-135M's shape", "batch": batch, **figures, **absent, **without, **late}


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
        results, late = _in_turn(proof, work, ways, share * proof.left())
        figures = _figures(proof, of.shape, of.rank, work, results)
        return {"model": _named(of), "batch": batch, "tokens a pass": of.tokens, **figures, **without, **late}

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
        _free(proof)
    raise Skip(f"no shape of {', '.join(sizes.SHAPES)} fits this card, not with an adapter either")


def _free(proof: Proof) -> None:
    """What nobody holds any more; on a CPU that is not worth the third of a second that it takes."""
    if proof.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _in_turn(
    proof: Proof, work: Work, ways: dict[str, Way], seconds: float
) -> tuple[dict[str, Measured], Figures]:  # fmt: skip
    """What each way did, and why those that are missing did nothing: in `seconds`, though the first has its turn in
    any case, and only it may end the check by failing (tests/gpu/correct.py is what judges kernels)."""
    until = time.monotonic() + min(seconds, proof.left())
    results: dict[str, Measured] = {}
    late: Figures = {}
    warm = replace(work, rows=work.rows[: work.batch])
    for name, run in ways.items():
        if results and time.monotonic() + (COMPILING if "flex" in name else 0) > until:
            late[name] = NOT_REACHED
            continue
        _free(proof)
        reset_peak()
        watch = Watch()
        try:
            run(warm, watch)
        except Exception as error:
            if not results:
                raise
            late[name] = f"failed: {one_line(error, 120, kind=True)}"
            continue
        if watch.notes and results:  # it is another way then
            late[name] = watch.notes[0]
            continue
        assert not watch.notes, watch.notes[0]
        results[name] = Measured(memory("VmHWM"))
    for _ in range(1 if proof.tiny else ROUNDS):
        began = time.monotonic()
        for name in results:
            watch = Steps()
            losses = ways[name](work, watch)
            results[name].steps += watch.seconds
            if "score" in watch.parts:
                results[name].scoring.append(watch.scored or watch.parts["score"]["wall"])
            results[name].losses = results[name].losses or losses
        if time.monotonic() + (time.monotonic() - began) > until:
            break
    return results, late


def _figures(proof: Proof, shape: Architecture, rank: int, work: Work, results: dict[str, Measured]) -> Figures:
    """The table's cells."""
    gpu, steps = sizes.card(proof), len(work.rows) / work.batch
    useful = operations.training_flops(shape, sizes.groups(work.rows), False, bool(rank)) / steps
    figures: Figures = {}
    pairs, best = dict[str, float](), 0.0
    for way, one in results.items():
        step = statistics.median(one.steps)
        scoring = statistics.median(one.scoring) / len(work.rows) if one.scoring else 0.0
        pairs[way] = 1 / (step / work.batch + scoring / EPOCHS)
        figures[f"{way}, tokens/s"] = work.useful_tokens / steps / step
        if gpu.bfloat16:
            share = useful / step / (gpu.bfloat16 * 1e12)
            figures[f"{way}, MFU"] = share
            best = max(best, share) if way.startswith("ours") else best
        figures[f"{way}, pairs/s"] = pairs[way]
        figures[f"{way}, GiB"] = one.peak / GIB
    for other in ("reference", "TRL"):
        if other in pairs:
            figures[f"ours : {other}, pairs/s"] = max(n for way, n in pairs.items() if way[:4] == "ours") / pairs[other]
    if not gpu.bfloat16:
        figures["MFU"] = f"left out: the peak of {gpu.name} is not in spin_core/estimate/gpus.yaml"
    elif shape.weights >= FROM:
        figures[f"aim of {AIM:.0%} MFU"] = "met" if best >= AIM else "MISSED"
    return figures


CHECKS = (
    largest_short, small_short, one_step, generation, largest_beside_reference, largest_long, small_long,
)  # fmt: skip
