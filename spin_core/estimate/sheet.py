"""The cost sheet: GPU-hours, time, memory and disk of each stage of what would run.

Is not: what it did cost (`spin_core/analysis/costs.py` reads that from records). Stages run one after the other here;
where `runtime.workers` lets some run side by side the wall time is less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spin_core.config import yaml_reader
from spin_core.config.finetune import Finetune
from spin_core.config.profile import Config
from spin_core.config.sft import Sft
from spin_core.config.stage_table import ORDER
from spin_core.engines import Engine, Footprint
from spin_core.engines.harness.backends import BACKENDS
from spin_core.engines.table import ENGINES
from spin_core.estimate import memory, needs, work
from spin_core.estimate.activations import PassShape
from spin_core.estimate.hardware import Gpu
from spin_core.estimate.needs import Need, Setting
from spin_core.estimate.todo import KNOWN as DATASETS
from spin_core.estimate.todo import Todo

BENCHMARKS = DATASETS.with_name("benchmarks.yaml")
ROWS_A_SECOND = 5_000.0
"""That reformat and gather read and write on a CPU."""
TEXT = 4.0
"""Bytes of a token's text; parquet keeps about half of it."""
TOKEN_BYTES = 4
KEPT = 3
"""Checkpoints on disk at once: the newest two, and one that is being written."""
NOTHING = Need(0, 0)
UNTIMED = Gpu("", 1.0, 1.0, 1.0, 1.0, 1.0)
"""Stands in where no GPU of known speed is: what would take time on it has an unknown one."""


@dataclass
class StageCost:
    """One stage: how many `steps`, on `gpus` at once, `seconds` of wall time (None: unknown), bytes on disk (`store`
    for good, `scratch` while it runs) and of `need`; `gpu_seconds`: of all GPUs; of score `tokens` of its forward
    passes, and how many it is `saved` beside scoring pair by pair."""

    stage: str
    steps: int
    gpus: int
    seconds: float | None
    store: float
    scratch: float = 0.0
    need: Need = NOTHING
    gpu_seconds: float | None = None
    tokens: float = 0.0
    saved: float = 0.0


def lines(s: Setting, config: Config, todo: Todo) -> list[StageCost]:
    """Of the stages that have something to do, in the order of the DAG."""
    seen = s.hardware.gpu
    gpu = seen if seen and seen.bandwidth else UNTIMED
    makers = {
        _reformat: todo.reformat, _tokenize: todo.tokenize, _sft: todo.sft or todo.controls, _generate: todo.generate,
        _gather: todo.gather, _score: todo.score, _finetune: todo.finetune, _evaluate: todo.evaluate,
        _harness: todo.harness,
    }  # fmt: skip
    costs = [make(s, config, todo, gpu) for make, left in makers.items() if left]
    for line in costs:
        if line.stage in needs.NEEDS:
            line.need = needs.of(line.stage, s, config)
            correction = needs.correction_of(line.stage, s, config)
            line.seconds = (
                None
                if gpu is UNTIMED or line.seconds is None
                else line.seconds * (correction.time if correction else 1)
            )
        line.gpus = line.gpus if seen else 0
        line.gpu_seconds = None if line.seconds is None else line.seconds * line.gpus
    return costs


def total(costs: list[StageCost]) -> StageCost:
    """Sums of time and store; the most of memory and scratch at once."""
    return StageCost(
        "total", sum(line.steps for line in costs), 0, _sum([line.seconds for line in costs]),
        sum(line.store for line in costs), max(line.scratch for line in costs),
        Need(max(line.need.gpu for line in costs), max(line.need.host for line in costs)),
        _sum([line.gpu_seconds for line in costs]),
    )  # fmt: skip


def together(sheets: Sequence[list[StageCost]]) -> list[StageCost]:
    """The sheets of several runs as one, a line for each stage in the order of the DAG: sums of steps,
    time and store; the most of memory and scratch."""
    lines: dict[str, list[StageCost]] = {}
    for line in (line for one in sheets for line in one):
        lines.setdefault(line.stage, []).append(line)
    return [
        replace(
            total(of), stage=stage, gpus=max(line.gpus for line in of), tokens=sum(line.tokens for line in of),
            saved=sum(line.saved for line in of),
        )
        for stage, of in sorted(lines.items(), key=lambda one: ORDER.index(one[0]))
    ]  # fmt: skip


def _sum(parts: list[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _reformat(s: Setting, config: Config, todo: Todo, gpu: Gpu) -> StageCost:
    size = s.data.rows * (1.5 * s.data.prompt + s.data.answer) * TEXT
    return StageCost("reformat", 1, 0, s.data.rows / ROWS_A_SECOND, size)


def _tokenize(s: Setting, config: Config, todo: Todo, gpu: Gpu) -> StageCost:
    size = s.data.rows * (s.data.prompt + s.data.answer) * TOKEN_BYTES
    return StageCost("tokenize", todo.tokenize, 0, todo.tokenize * s.data.rows / ROWS_A_SECOND, todo.tokenize * size)


def _sft(s: Setting, config: Config, todo: Todo, gpu: Gpu) -> StageCost:
    part = config.sft if todo.sft else config.control
    assert part is not None
    epochs = ([part.epochs] if todo.sft else []) + [sum(config.passes(t) for t in range(n)) for n in todo.controls]
    return _training("sft", s, config, part, len(epochs), sum(epochs) * s.data.train, gpu)


def _finetune(s: Setting, config: Config, todo: Todo, gpu: Gpu) -> StageCost:
    count = sum(config.passes(t) for t in todo.finetune) * s.data.train
    return _training("finetune", s, config, config.finetune, len(todo.finetune), count, gpu)


def _training(
    stage: str, s: Setting, config: Config, part: Finetune | Sft, steps: int, count: float, gpu: Gpu
) -> StageCost:
    """Of `count` examples in all `steps`."""
    examples, count = count, count / needs.together(config, part)
    runtime, compute, group = config.runtime, config.runtime.compute, PassShape([needs.example(s, config, part)])
    rank = part.lora.rank if isinstance(part, Finetune) and part.lora else 0
    flops = work.training_flops(s.model, group, runtime.gradient_checkpointing, bool(rank))
    computing = flops / (gpu.tflops(part.precision) * 1e12 * work.TRAINING) * count / compute.world
    passes = count / compute.world * group.tokens / max(runtime.micro_tokens, group.tokens)
    times = {0: 0, 1: 0, 2: 1, 3: 3}[memory.SHARDED[compute.sharding]] if compute.world > 1 else 0
    sending = passes * work.gathering_seconds(s.model, gpu, times, compute.nodes, compute.processes)
    seconds = max(computing, sending)
    if compute.offload != "none":
        seconds += work.offload_seconds(s.model, compute.world) * examples / part.global_batch
    trained = s.model.adapter(rank) if rank else s.model.weights
    # Float32 weights and optimiser's state, as often as they are on disk at once.
    scratch = KEPT * 4.0 * trained * (1 + memory.STATES[part.optimizer]) if runtime.checkpoint_every else 0.0
    return StageCost(stage, steps, compute.world, seconds, steps * s.model.weights * s.model.bytes_on_disk, scratch)


def _generate(s: Setting, config: Config, todo: Todo, gpu: Gpu) -> StageCost:
    seconds, store, gpus = 0.0, 0.0, 0
    prompt = min(s.data.prompt, config.chat.max_prompt_length)
    for t, rows in todo.generate.items():
        part = config.at(t).generate
        new, rows = min(s.data.answer, part.max_new_tokens), rows * part.n
        store += rows * (new * 11 + 120)  # text and token ids as JSON
        use = ENGINES[part.engine].footprint(config.runtime)
        seconds += _sampling(s, config, ENGINES[part.engine], use, gpu, rows, prompt, new)
        gpus = gpus or use.processes * use.gpus
    return StageCost("generate", len(todo.generate), gpus, seconds, store)


def _sampling(
    s: Setting, config: Config, engine: Engine, use: Footprint, gpu: Gpu, rows: float, prompt: float, new: float
) -> float:  # fmt: skip
    """Seconds of sampling by all processes together."""
    compute, width, flight = config.runtime.compute, s.model.bytes_on_disk, use.in_flight
    if use.gpu_share:
        cache = 2 * s.model.layers * s.model.keys * width * (prompt + new)
        free = use.gpus * gpu.gib * needs.GIB * use.gpu_share - s.model.weights * width - use.gpus * 2 * needs.GIB
        flight = max(1, min(flight, int(free / cache)))
    own = round(rows / use.processes)
    seconds = work.sampling_seconds(s.model, gpu, own, prompt, new, flight, engine.LAYER_SECONDS, use.gpus)
    if not use.gpu_share and needs.sharded(config) > 1:
        steps = max(own / flight, 1.0) * new
        seconds += steps * work.gathering_seconds(s.model, gpu, 1, compute.nodes, compute.processes) * width / 4
    return seconds


def _gather(s: Setting, config: Config, todo: Todo, gpu: Gpu) -> StageCost:
    steps, new = len(todo.gather), min(s.data.answer, config.generate.max_new_tokens)
    pairs = sum(map(config.pairs_a_row, todo.gather)) * s.data.rows
    size = pairs * (2 * s.data.prompt + s.data.answer + new) * TEXT / 2
    return StageCost("gather", steps, 0, pairs / ROWS_A_SECOND, size)


def _score(s: Setting, config: Config, todo: Todo, gpu: Gpu) -> StageCost:
    """Of each set the rows, with all their pairs; without their real answers, which the model's own pairs have."""
    shown, (real, new) = needs.lengths(s, config, config.finetune)
    seconds = tokens = pairs = 0.0
    for t, of, by in todo.score:
        each = config.pairs_a_row(of)
        row = PassShape([(shown, [real] * (not config.real_known(t, of, by)) + [new] * each)])
        seconds += _reading(s, config, row, s.data.rows, gpu)
        tokens, pairs = tokens + row.tokens * s.data.rows, pairs + each * s.data.rows
    saved = pairs * PassShape([(shown, [real, new])]).tokens - tokens
    world = config.runtime.compute.world
    return StageCost("score", len(todo.score), world, seconds, 60.0 * pairs, tokens=tokens, saved=saved)


def _reading(s: Setting, config: Config, group: PassShape, count: float, gpu: Gpu) -> float:
    """Seconds of scoring `count` groups, by all processes that share a model."""
    compute, peak = config.runtime.compute, gpu.tflops(config.finetune.precision) * 1e12 * work.SCORING
    computing = work.reading_flops(s.model, group) / peak * count / compute.world
    passes = count / compute.world * group.tokens / max(config.runtime.score_tokens, group.tokens)
    times = 1 if needs.sharded(config) > 1 else 0
    return max(computing, passes * work.gathering_seconds(s.model, gpu, times, compute.nodes, compute.processes))


def _evaluate(s: Setting, config: Config, todo: Todo, gpu: Gpu) -> StageCost:
    part, world, rows = config.evaluate, config.runtime.compute.world, todo.evaluate * s.data.test
    shown, answers = needs.lengths(s, config, config.finetune)
    seconds = _reading(s, config, PassShape([(shown, answers[:1])]), rows, gpu)
    # Against the opponent, and from the second iteration on against the start; of a loss without an opponent neither.
    groups = 0 if config.finetune.reference_free else max(0, 2 * todo.opposed - 1) * s.data.test
    each = config.pairs_a_row(max(config.iterations, 1) - 1)
    seconds += _reading(s, config, PassShape([(shown, [answers[0]] + [answers[1]] * each)]), groups, gpu)
    prompt, new = min(s.data.prompt, config.chat.max_prompt_length), min(s.data.answer, part.max_new_tokens)
    engine = ENGINES[config.generate.engine]
    use = engine.footprint(config.runtime)
    use = replace(use, processes=1 if use.gpu_share else world)  # one step, so one engine
    answered = todo.evaluate * (part.answers + (part.answers and part.sampled)) * s.data.test
    seconds += _sampling(s, config, engine, use, gpu, answered, prompt, new)
    return StageCost("evaluate", todo.evaluate, world, seconds, rows * (s.data.prompt + 3 * s.data.answer) * TEXT)


def _harness(s: Setting, config: Config, todo: Todo, gpu: Gpu) -> StageCost:
    """On one GPU, or one engine of vLLM's."""
    part = config.harness
    assert part is not None
    listed, engine = yaml_reader.read_file(BENCHMARKS), BACKENDS[part.backend].engine
    use, seconds = engine.footprint(config.runtime), 0.0
    flight = use.in_flight if use.gpu_share else config.runtime.harness_batch
    for task in part.chosen():
        requests, tokens, new = listed.get(task.task, listed["other"])
        if task.limit:
            requests = min(requests, 4 * task.limit)
        reading = work.reading_flops(s.model, PassShape([(tokens, (4,))])) / (gpu.bfloat16 * 1e12 * work.SCORING)
        seconds += requests * reading / use.gpus
        if new:
            seconds += work.sampling_seconds(
                s.model, gpu, requests, tokens, new, flight, engine.LAYER_SECONDS, use.gpus
            )
    return StageCost("harness", todo.harness, use.gpus, seconds * todo.harness, 2e7 * todo.harness)
