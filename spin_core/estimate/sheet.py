"""The cost sheet: GPU-hours, time, memory and disk of each stage of what would run.

Is not: what it did cost (`spin_core/analysis/costs.py` reads that from records). Stages run one after the other here;
where `runtime.workers` lets some run side by side the wall time is less.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from spin_core.config import yaml_reader
from spin_core.config.profile import Config
from spin_core.engines import Engine, Footprint, transformers_engine
from spin_core.engines.harness.backends import BACKENDS
from spin_core.engines.table import ENGINES
from spin_core.estimate import memory, needs, work
from spin_core.estimate.activations import PassShape
from spin_core.estimate.hardware import Gpu
from spin_core.estimate.needs import Setting
from spin_core.estimate.todo import KNOWN as DATASETS
from spin_core.estimate.todo import Todo

BENCHMARKS = DATASETS.with_name("benchmarks.yaml")
ROWS_A_SECOND = 5_000.0
"""That reformat and gather read and write on a CPU."""
TEXT = 4.0
"""Bytes of a token's text; parquet keeps about half of it."""
KEPT = 3
"""Checkpoints on disk at once: the newest two, and one that is being written."""
NOTHING = needs.Need(0, 0)


@dataclass
class StageCost:
    """One stage: how many `steps`, on `gpus` at once, `seconds` of wall time (None: unknown), bytes of `need` and on
    disk: `store` for good, `scratch` while it runs."""

    stage: str
    steps: int
    gpus: int = 0
    seconds: float | None = 0.0
    need: needs.Need = NOTHING
    store: float = 0.0
    scratch: float = 0.0
    gpu_seconds: float | None = None
    """Of all GPUs; None: `gpus` times the wall time."""

    @property
    def gpu_hours(self) -> float | None:
        """None where the time is unknown."""
        if self.gpu_seconds is not None:
            return self.gpu_seconds / 3600
        return None if self.seconds is None else self.seconds * self.gpus / 3600


def lines(s: Setting, config: Config, todo: Todo) -> list[StageCost]:
    """Of the stages that have something to do, in the order of the DAG."""
    costs = []
    for make in (_reformat, _sft, _generate, _gather, _score, _finetune, _evaluate, _harness):
        line = make(s, config, todo)
        if line is None:
            continue
        if line.stage in needs.NEEDS:
            line.need = needs.NEEDS[line.stage](s, config)
        costs.append(line)
    return costs


def total(costs: list[StageCost]) -> StageCost:
    """Sums of time and store; the most of memory and scratch at once."""
    seconds = [line.seconds for line in costs]
    sums = StageCost("total", sum(line.steps for line in costs), 0, None)
    if None not in seconds:
        sums.seconds = sum(one for one in seconds if one is not None)
        sums.gpu_seconds = sum((line.seconds or 0.0) * line.gpus for line in costs)
    sums.need = needs.Need(*(max((getattr(line.need, part) for line in costs), default=0) for part in ("gpu", "host")))
    sums.store = sum(line.store for line in costs)
    sums.scratch = max((line.scratch for line in costs), default=0)
    return sums


def _timed(s: Setting, precision: str, seconds: Callable[[Gpu], float]) -> float | None:
    gpu = s.hardware.gpu
    return seconds(gpu) if gpu and gpu.tflops(precision) and gpu.bandwidth else None


def _gpus(s: Setting, count: int) -> int:
    return count if s.hardware.gpu else 0


def _reformat(s: Setting, config: Config, todo: Todo) -> StageCost | None:
    if not todo.reformat:
        return None
    size = s.data.rows * (1.5 * s.data.prompt + s.data.answer) * TEXT
    return StageCost("reformat", 1, 0, s.data.rows / ROWS_A_SECOND, store=size)


def _sft(s: Setting, config: Config, todo: Todo) -> StageCost | None:
    parts = ([config.sft.epochs] if todo.sft and config.sft else []) + [
        sum(config.epochs(t) * min(t + 1, config.history) for t in range(n)) for n in todo.controls
    ]
    part = config.sft if todo.sft else config.control
    if not parts or part is None:
        return None
    prompt, answer = needs.lengths(s.data, config.chat.max_prompt_length, part.max_length, 1)[:2]
    row = PassShape.of([(prompt, (answer,))])
    line = _training(s, config, row, sum(parts) * s.data.train, part.global_batch, part.precision, 0)
    line.stage, line.steps, line.store = "sft", len(parts), len(parts) * s.model.weights * s.model.bytes_on_disk
    line.scratch = _checkpoints(config, s.model.weights, part.optimizer)
    return line


def _training(
    s: Setting, config: Config, group: PassShape, count: float, batch: int, precision: str, rank: int
) -> StageCost:  # fmt: skip
    """Time of `count` groups like `group`."""
    compute, again = config.runtime.compute, config.runtime.gradient_checkpointing
    world, parts = compute.world, memory.SHARDED[compute.sharding]

    def seconds(gpu: Gpu) -> float:
        computing = work.training_seconds(s.model, group, gpu, precision, again, bool(rank)) * count / world
        passes = count / world * group.tokens / max(config.runtime.micro_tokens, group.tokens)
        times = {0: 0, 1: 0, 2: 1, 3: 3}[parts] if world > 1 else 0
        sending = passes * work.gathering_seconds(s.model, gpu, times, compute.nodes, compute.processes)
        offloaded = work.offload_seconds(s.model, world) * count / batch if compute.offload != "none" else 0.0
        return max(computing, sending) + offloaded

    return StageCost("", 0, _gpus(s, world), _timed(s, precision, seconds))


def _checkpoints(config: Config, trained: int, optimizer: str) -> float:
    """Float32 weights and optimiser's state, as often as they are on disk at once."""
    return KEPT * 4.0 * trained * (1 + memory.STATES[optimizer]) if config.runtime.checkpoint_every else 0.0


def _generate(s: Setting, config: Config, todo: Todo) -> StageCost | None:
    if not todo.generate:
        return None
    runtime, store = config.runtime, 0.0
    seconds: float | None = 0.0
    prompt = min(s.data.prompt, config.chat.max_prompt_length)
    for t, rows in todo.generate.items():
        part = config.at(t).generate
        new = min(s.data.answer, part.max_new_tokens)
        store += rows * (new * 11 + 120)  # text and token ids as JSON
        engine = ENGINES[part.engine]
        use = engine.footprint(runtime)
        sampled = partial(_sampled, s, config, engine, use, rows=rows, prompt=prompt, new=new)
        more = _timed(s, "bfloat16", sampled)
        seconds = None if more is None or seconds is None else seconds + more
    use = ENGINES[config.at(next(iter(todo.generate))).generate.engine].footprint(runtime)
    return StageCost("generate", len(todo.generate), _gpus(s, use.processes * use.gpus), seconds, store=store)


def _readers(config: Config) -> int:
    """Processes that score or evaluate: those that share a model, or one."""
    return config.runtime.compute.world


def _sampled(
    s: Setting, config: Config, engine: Engine, use: Footprint, gpu: Gpu, rows: float, prompt: float, new: float
) -> float:
    """Seconds of sampling by all processes together."""
    compute, width, flight = config.runtime.compute, s.model.bytes_on_disk, use.in_flight
    if use.gpu_share:
        cache = 2 * s.model.layers * s.model.keys * width * (prompt + new)
        free = use.gpus * gpu.gib * needs.GIB * use.gpu_share - s.model.weights * width - use.gpus * 2 * needs.GIB
        flight = max(1, min(flight, int(free / cache)))
    own = round(rows / use.processes)
    seconds = work.sampling_seconds(s.model, gpu, own, prompt, new, flight, width, engine.LAYER_SECONDS, use.gpus)
    if not use.gpu_share and needs.sharded(config) > 1:
        steps = max(own / flight, 1.0) * new
        seconds += steps * work.gathering_seconds(s.model, gpu, 1, compute.nodes, compute.processes) * width / 4
    return seconds


def _gather(s: Setting, config: Config, todo: Todo) -> StageCost | None:
    if not todo.gather:
        return None
    new = min(s.data.answer, config.generate.max_new_tokens)
    size = s.data.rows * (2 * s.data.prompt + s.data.answer + new) * TEXT / 2
    return StageCost(
        "gather", len(todo.gather), 0, len(todo.gather) * s.data.rows / ROWS_A_SECOND, store=len(todo.gather) * size
    )


def _pair(s: Setting, config: Config) -> PassShape:
    part = config.finetune
    prompt, *answers = needs.lengths(
        s.data, config.chat.max_prompt_length, part.max_length, config.generate.max_new_tokens
    )
    return PassShape.of([(prompt, answers)])


def _reading(s: Setting, config: Config, group: PassShape, count: float) -> Callable[[Gpu], float]:
    """Seconds of scoring `count` groups."""
    compute, precision, world = config.runtime.compute, config.finetune.precision, _readers(config)

    def seconds(gpu: Gpu) -> float:
        computing = work.reading_seconds(s.model, group, gpu, precision) * count / world
        passes = count / world * group.tokens / max(config.runtime.score_tokens, group.tokens)
        times = 1 if needs.sharded(config) > 1 else 0
        return max(computing, passes * work.gathering_seconds(s.model, gpu, times, compute.nodes, compute.processes))

    return seconds


def _score(s: Setting, config: Config, todo: Todo) -> StageCost | None:
    if not todo.score:
        return None
    count = len(todo.score) * s.data.rows
    seconds = _timed(s, config.finetune.precision, _reading(s, config, _pair(s, config), count))
    return StageCost("score", len(todo.score), _gpus(s, _readers(config)), seconds, store=60.0 * count)


def _finetune(s: Setting, config: Config, todo: Todo) -> StageCost | None:
    if not todo.finetune:
        return None
    part = config.finetune
    count = sum(min(t + 1, config.history) * config.epochs(t) for t in todo.finetune) * s.data.train
    rank = part.lora.rank if part.lora else 0
    line = _training(s, config, _pair(s, config), count, part.global_batch, part.precision, rank)
    line.stage, line.steps = "finetune", len(todo.finetune)
    line.store = len(todo.finetune) * s.model.weights * s.model.bytes_on_disk
    line.scratch = _checkpoints(config, s.model.adapter(rank) if rank else s.model.weights, part.optimizer)
    return line


def _evaluate(s: Setting, config: Config, todo: Todo) -> StageCost | None:
    if not todo.evaluate:
        return None
    part, pair = config.evaluate, _pair(s, config)
    row = PassShape.of([(pair.groups[0][0], pair.groups[0][1][:1])])
    prompt, new = min(s.data.prompt, config.chat.max_prompt_length), min(s.data.answer, part.max_new_tokens)
    use = replace(transformers_engine.footprint(config.runtime), processes=_readers(config))
    answered = todo.evaluate * (part.answers + (part.answers and part.sampled)) * s.data.test

    def seconds(gpu: Gpu) -> float:
        taken = _reading(s, config, row, todo.evaluate * s.data.test)(gpu)
        # Against the opponent, and from the second game on against the start.
        taken += _reading(s, config, pair, max(0, 2 * todo.games - 1) * s.data.test)(gpu)
        return taken + _sampled(s, config, transformers_engine, use, gpu, answered, prompt, new)

    size = todo.evaluate * s.data.test * (s.data.prompt + 3 * s.data.answer) * TEXT
    wall = _timed(s, config.finetune.precision, seconds)
    return StageCost("evaluate", todo.evaluate, _gpus(s, _readers(config)), wall, store=size)


def _harness(s: Setting, config: Config, todo: Todo) -> StageCost | None:
    """On one GPU, or one engine of vLLM's."""
    part = config.harness
    if not todo.harness or part is None:
        return None
    listed, engine = yaml_reader.read_file(BENCHMARKS), BACKENDS[part.backend].engine
    use = engine.footprint(config.runtime)
    flight = use.in_flight if use.gpu_share else config.runtime.harness_batch
    tasks = [(*listed.get(task.task, listed["other"]), task.limit) for task in part.chosen()]

    def seconds(gpu: Gpu) -> float:
        taken = 0.0
        for all_of_them, tokens, new, limit in tasks:
            requests = min(all_of_them, 4 * limit) if limit else all_of_them
            one = PassShape.of([(tokens, (4,))])
            taken += requests * work.reading_seconds(s.model, one, gpu, "bfloat16") / use.gpus
            if new:
                width = s.model.bytes_on_disk
                taken += work.sampling_seconds(
                    s.model, gpu, requests, tokens, new, flight, width, engine.LAYER_SECONDS, use.gpus
                )
        return taken * todo.harness

    return StageCost(
        "harness", todo.harness, _gpus(s, use.gpus), _timed(s, "bfloat16", seconds), store=2e7 * todo.harness
    )
