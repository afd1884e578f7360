"""Whether the cost sheet tells the truth: time and memory that `spinloop plan` would print for a stage, against what it
takes on this card, for SmolLM2-135M's shape and for the largest that fits.

Stages are computed as they are in a run, by their own functions, on a model that is made on the card, so that loading,
which the sheet does not count, is in no figure: finetune (the training loop; a step's median), score, generate (the
transformers engine's slots) and evaluate (likelihood, greedy and sampled answers). Memory is the most that torch had
allocated, against the sheet's tensors without its 5 % for the allocator and 1 GiB for CUDA.

A stage's factor, measured over estimated, is of short prompts. `measured.yaml` in the proof's folder has them all,
with what was known before; copied over spin_core/estimate/measured.yaml (`cp`), `spinloop plan` multiplies its
estimates for this card and says so. A factor is worth something only where it holds on what it was not made from:
so on long prompts the estimate times the factor is compared with a second measurement. The bounds, 15 % of memory and
30 % of time, are `met` or `MISSED` in the row: a figure and no failure, as the factors are what is to be kept, and a
row that failed has no figures. A rehearsal runs the same and judges nothing: the sheet has no speeds of a CPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from spin_core.config.finetune import Score
from spin_core.config.profile import Config
from spin_core.config.runtime import Runtime
from spin_core.engines import Request, Sampling
from spin_core.engines.decoding import Rate, Sampler
from spin_core.engines.slots import answers
from spin_core.estimate import measured, sheet
from spin_core.estimate.needs import CONTEXT, GIB, SPARE
from spin_core.estimate.text import weights
from spin_core.estimate.todo import Todo
from spin_core.job import Bar, Job
from spin_core.modeling.collate import Tokens
from spin_core.stages.score import logps_under
from tests.benchmarks import our_way
from tests.benchmarks.bench_work import Watch, memory, reset_peak, synchronize
from tests.estimate.measured import llama
from tests.gpu import sizes
from tests.gpu.in_turn import Steps, free
from tests.gpu.proof import NOT_REACHED, Figures, Proof, Skip

TIME, MEMORY = 0.30, 0.15
"""By which a corrected estimate may be off."""


@dataclass(frozen=True)
class Case:
    """What is estimated and measured: pairs of a model, of which the last `test` are held out."""

    proof: Proof
    of: sizes.Candidate
    rows: list[sizes.Row]
    batch: int
    test: int
    new: int

    @property
    def config(self) -> Config:
        slots = 4 if self.proof.tiny else 64
        return sizes.profile(self.rows, self.batch, self.of.rank, self.of.tokens, self.new, generate_batch=slots)

    def job(self) -> Job:
        runtime = self.config.runtime.model_copy(update={"device": str(self.proof.device)})
        return Job(self.proof.folder("out"), self.proof.folder("scratch"), Runtime(**runtime.model_dump()))


@dataclass(frozen=True)
class Cost:
    """Seconds of a stage, and bytes of tensors at their most."""

    seconds: float
    memory: float


def small(proof: Proof) -> Figures:
    """SmolLM2's shape."""
    return _compared(proof, sizes.Candidate("SmolLM2-135M's shape", sizes.small(proof), 0, 8192))


def largest(proof: Proof) -> Figures:
    """The largest shape that fits."""
    rows = sizes.draw(sizes.TINY, "long", 32, proof.tiny)
    of = next(sizes.candidates(proof, rows, 16), None)
    if of is None:
        raise Skip(f"no shape of {', '.join(sizes.SHAPES)} fits this card, not with an adapter either")
    return _compared(proof, of)


def _compared(proof: Proof, of: sizes.Candidate) -> Figures:
    figures: Figures = {"model": f"{of.name} ({weights(of.shape.weights)} weights)", "card": sizes.card(proof).name}
    factors: dict[str, tuple[float, float]] = {}
    clock = Clock(proof)
    for stage in measured.STAGES:
        if not clock.allows():
            figures[stage] = NOT_REACHED
            continue
        estimate, cost = _both(proof, of, "short", stage)
        factors[stage] = cost.seconds / estimate.seconds, cost.memory / estimate.memory
        figures[f"{stage}, s"] = f"{cost.seconds:.3g} for {estimate.seconds:.3g}"
        figures[f"{stage}, GiB"] = f"{cost.memory / GIB:.3g} for {estimate.memory / GIB:.3g}"
    known = proof.out / measured.KNOWN.name
    date, name = time.strftime("%Y-%m-%d", time.gmtime()), sizes.card(proof).name
    added = measured.added(name, date, of.shape.weights, factors, known if known.is_file() else measured.KNOWN)
    measured.write(added, known)
    return figures | _held(proof, of, factors, clock)


@dataclass
class Clock:
    """Whether time is left for as long as the longest measurement so far took: a check that is ended has no row."""

    proof: Proof
    longest: float = 0.0
    began: float = 0.0

    def allows(self) -> bool:
        now = time.monotonic()
        self.longest = max(self.longest, now - self.began) if self.began else 0.0
        self.began = now
        return self.proof.left() > self.longest


def _held(proof: Proof, of: sizes.Candidate, factors: dict[str, tuple[float, float]], clock: Clock) -> Figures:
    """The errors of the corrected estimates on long prompts."""
    figures: Figures = {}
    wrong = []
    for stage, (slower, larger) in factors.items():
        if not clock.allows():
            figures[f"{stage}, corrected, off by"] = NOT_REACHED
            continue
        estimate, cost = _both(proof, of, "long", stage)
        off = estimate.seconds * slower / cost.seconds - 1, estimate.memory * larger / cost.memory - 1
        figures[f"{stage}, corrected, off by"] = f"{off[0]:+.0%} of time, {off[1]:+.0%} of memory"
        if abs(off[0]) > TIME or abs(off[1]) > MEMORY:
            wrong.append(f"{stage} {figures[f'{stage}, corrected, off by']}")
    if not proof.tiny:
        figures[f"bounds, {TIME:.0%} of time and {MEMORY:.0%} of memory"] = (
            f"MISSED: {'; '.join(wrong)}" if wrong else "met"
        )
    return figures


def _both(proof: Proof, of: sizes.Candidate, name: str, stage: str) -> tuple[Cost, Cost]:
    """What the sheet says of a stage, and what it is."""
    count, batch, new = (8, 4, 6) if proof.tiny else (192, 32, 48)
    rows = [(p, r, g[:new]) for p, r, g in sizes.draw(of.shape, name, count, proof.tiny, seed=2)]
    case = Case(proof, of, rows, batch, count // 3, new)
    estimate, cost = estimated(case, stage), STAGES[stage](case)
    free(proof)
    return estimate, cost


def estimated(case: Case, stage: str) -> Cost:
    """What the sheet says without any correction: of a card without a name, nothing was measured."""
    nameless = replace(sizes.card(case.proof), name="")
    setting = sizes.setting(nameless, case.of.shape, case.rows, case.test)
    todo = Todo(generate={0: setting.data.rows}, score=[(0, 0, 0)], finetune=[0], evaluate=1)
    line = next(line for line in sheet.lines(setting, case.config, todo) if line.stage == stage)
    if line.seconds is None:
        raise Skip(f"{sizes.card(case.proof).name} is not in spin_core/estimate/gpus.yaml; give it a line there")
    return Cost(line.seconds, (line.need.gpu - CONTEXT) / SPARE)


def finetune(case: Case) -> Cost:
    """The training rows, for the profile's epochs."""
    rows = case.rows[: len(case.rows) - case.test]
    made, watch = sizes.model(case.proof, case.of), Steps()
    work = replace(sizes.work(case.proof, rows, case.batch, case.of.tokens), scored=False)
    our_way.run(replace(work, rows=rows[: case.batch]), Watch(), made)
    reset_peak()
    our_way.run(work, watch, made)
    steps = work.epochs * len(rows) / case.batch
    return Cost(statistics.median(watch.seconds) * steps, memory("VmHWM"))


def score(case: Case) -> Cost:
    """All pairs."""
    made = _reader(case, torch.float32)
    return _timed(case, lambda rows: _read(case, made, [_tokens(row, 2) for row in rows]))


def generate(case: Case) -> Cost:
    """Answers to all prompts."""
    made = _reader(case, torch.bfloat16 if case.of.shape.bytes_on_disk == 2 else torch.float32)
    return _timed(case, lambda rows: _sample(case, made, rows, 1.0))


def evaluate(case: Case) -> Cost:
    """Likelihood of the held-out answers, then two answers to each held-out prompt, one model after the other."""
    test = replace(case, rows=case.rows[-case.test :])
    made = _reader(case, torch.float32)
    read = _timed(test, lambda rows: _read(case, made, [_tokens(row, 1) for row in rows]))
    made = _reader(case, torch.bfloat16 if case.of.shape.bytes_on_disk == 2 else torch.float32)
    greedy, sampled = (_timed(test, lambda rows, t=t: _sample(case, made, rows, t)) for t in (0.0, 1.0))
    parts = (read, greedy, sampled)
    return Cost(sum(part.seconds for part in parts), max(part.memory for part in parts))


STAGES: dict[str, Callable[[Case], Cost]] = {
    "generate": generate, "score": score, "finetune": finetune, "evaluate": evaluate,
}  # fmt: skip


def _reader(case: Case, dtype: torch.dtype) -> torch.nn.Module:
    """The shape with random weights, for reading alone."""
    with case.proof.device:
        return llama(case.of.shape).to(dtype).eval().requires_grad_(False)


def _timed(case: Case, compute: Callable[[list[sizes.Row]], None]) -> Cost:
    """Of `compute` on all rows, after it was warmed up on the first batch."""
    compute(case.rows[: case.batch])
    reset_peak()
    synchronize()
    began = time.perf_counter()
    compute(case.rows)
    synchronize()
    return Cost(time.perf_counter() - began, memory("VmHWM"))


def _read(case: Case, made: torch.nn.Module, groups: list[list[Tokens]]) -> None:
    settings = Score(max_length=case.config.finetune.max_length, precision="bfloat16", collation="exact")
    logps_under(made, groups, settings, case.job(), "score")


def _sample(case: Case, made: torch.nn.Module, rows: list[sizes.Row], temperature: float) -> None:
    sampling = Sampling(temperature, 1.0, case.new, frozenset(), 0, max_prompt=max(len(prompt) for prompt, *_ in rows))
    requests = [Request(str(i), prompt, i) for i, (prompt, *_) in enumerate(rows)]
    requests.sort(key=lambda one: len(one.prompt), reverse=True)
    rate = Rate(Bar(lambda event: None, "", len(requests), "prompts"))
    with torch.inference_mode():
        answers(made, requests, Sampler(sampling), case.config.runtime.generate_batch, rate)


def _tokens(row: sizes.Row, count: int) -> list[Tokens]:
    """The prompt with the first `count` of its answers."""
    import numpy as np

    prompt, *both = row
    return [Tokens(np.array(prompt + answer, np.int32), len(prompt)) for answer in both[:count]]


CHECKS = (small, largest)
