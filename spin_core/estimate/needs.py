"""Memory of each stage's processes under a profile: on a GPU, and in the host's memory of a node.

Is not: the arithmetic of tensors (`memory`), nor what to do where it does not fit (`fit`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from spin_core.config.finetune import Finetune
from spin_core.config.profile import Config
from spin_core.config.sft import Sft
from spin_core.engines import Footprint
from spin_core.engines.harness.backends import BACKENDS
from spin_core.engines.table import ENGINES
from spin_core.estimate import measured, memory
from spin_core.estimate.activations import Form, PassShape
from spin_core.estimate.architecture import Architecture
from spin_core.estimate.hardware import Hardware
from spin_core.estimate.measured import Correction
from spin_core.estimate.todo import Data

GIB = 1 << 30
CONTEXT = 1.0 * GIB
"""Of a GPU: CUDA's context, libraries' work space."""
SPARE = 1.05
"""For what the allocator rounds up and leaves between blocks."""
PROCESS = {"cpu": 0.7 * GIB, "cuda": 2.5 * GIB}
"""Host memory of a process with torch and its libraries."""


class Need(NamedTuple):
    """Bytes: on each GPU (0 on a CPU, where tensors are in the host's memory), and of a node's own memory."""

    gpu: float
    host: float


@dataclass(frozen=True)
class Setting:
    """What all needs are computed with."""

    model: Architecture
    data: Data
    hardware: Hardware

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """`cpu` or `cuda`."""
        return "cuda" if self.hardware.gpu else "cpu"


def lengths(s: Setting, config: Config, part: Finetune | Sft) -> tuple[int, list[int]]:
    """Tokens of a mean row or pair as it is cut: prompt, and its answers (the real one; of finetune the generated
    one)."""
    new, most = config.generate.max_new_tokens, part.max_length
    shown = max(1, min(round(s.data.prompt), config.chat.max_prompt_length, most - 1))
    answers = [max(1, min(round(s.data.answer), cut, most - shown)) for cut in (most, new)]
    return shown, answers if isinstance(part, Finetune) else answers[:1]


def example(s: Setting, config: Config, part: Finetune | Sft) -> tuple[int, list[int]]:
    """As `lengths`, with the further answers that are computed with it, as in the last iteration: θ_0's (tspin), or all
    that the row has in older pairs and in its own (dft, and `order: prompts`)."""
    shown, answers = lengths(s, config, part)
    if not isinstance(part, Finetune):
        return shown, answers
    first = int(part.wants_first and config.iterations > 1)
    return shown, answers + answers[1:] * (
        first + (every_pair(config) if part.loss == "dft" else together(config, part)) - 1
    )


def every_pair(config: Config) -> int:
    """Pairs of a row in all sets that the last iteration trains on."""
    return sum(map(config.pairs_a_row, config.sets(max(config.iterations, 1) - 1)))


def together(config: Config, part: Finetune | Sft) -> int:
    """Examples that are computed as one group, as in the last iteration."""
    return every_pair(config) if isinstance(part, Finetune) and part.order == "prompts" else 1


def _passes(s: Setting, config: Config, part: Finetune | Sft, budget: int, scoring: bool = False) -> list[PassShape]:
    """The passes that could be fullest: mean examples that fill `budget`, and the longest one that settings allow. Of
    scoring these are the pairs of a row, as many as fit."""
    shown, answers = (lengths if scoring else example)(s, config, part)
    if scoring:
        answers = answers + answers[1:] * (max(map(config.pairs_a_row, range(max(config.iterations, 1)))) - 1)
    new, most = config.generate.max_new_tokens if isinstance(part, Finetune) else 0, part.max_length
    least = max(1, min(config.chat.max_prompt_length, most - new))
    longest = [most - least] + [min(new, most - least)] * (len(answers) - 1)
    if scoring:
        answers, longest = _fitting(shown, answers, budget), _fitting(least, longest, budget)
    count = max(1, budget // (shown + sum(answers)))
    return [PassShape([(shown, answers)] * count), PassShape([(least, longest)])]


def _fitting(prompt: int, answers: list[int], budget: int) -> list[int]:
    """The first answers that fit into a pass with their prompt, two at least, as score divides a row's."""
    while len(answers) > 2 and prompt + sum(answers) > budget:
        answers = answers[:-1]
    return answers


def finetune(s: Setting, config: Config) -> Need:
    """Of the iteration that needs most."""
    iterations = [config.at(t) for t in range(config.iterations)]
    return max((_training(s, one, one.finetune) for one in iterations), default=Need(0, 0))


def sft(s: Setting, config: Config) -> Need:
    """Of `sft` and `control`."""
    return max(_training(s, config, part) for part in (config.sft, config.control) if part)


def _training(s: Setting, config: Config, part: Finetune | Sft) -> Need:
    runtime, compute = config.runtime, config.runtime.compute
    lora = part.lora if isinstance(part, Finetune) else None
    form = Form(part.precision, s.device, lora.rank if lora else 0, compute.world == 1 and compute.sharding == "none")
    share = -(-part.global_batch // compute.world)
    batches = _passes(s, config, part, runtime.micro_tokens)
    many = max(1, -(-share // len(batches[0].groups)))
    how = memory.Training(
        batches[0], form, part.optimizer, runtime.gradient_checkpointing, many, compute.sharding, compute.offload,
        compute.world, bool(lora and lora.quantize == "nf4"),
    )  # fmt: skip
    peak = max(memory.training(s.model, replace(how, batch=batch)).total for batch in batches)
    trained = s.model.adapter(lora.rank) if lora else s.model.weights
    host = _host(s, config, 4 * s.model.weights * (2 if lora else 1))
    if compute.offload != "none":  # the state, the weights' float32 copy, and the gradients
        host += 4 * trained * (memory.STATES[part.optimizer] + 2) / compute.nodes
    if compute.offload == "weights":
        host += 4 * trained / compute.nodes
    return _need(s, peak, host)


def score(s: Setting, config: Config) -> Need:
    """Of a scoring process: float32 weights and one pass of `runtime.score_tokens`."""
    part = config.finetune
    batches = _passes(s, config, part, config.runtime.score_tokens, scoring=True)
    form, parts = Form(part.precision, s.device), sharded(config)
    nf4 = bool(part.lora and part.lora.quantize == "nf4")
    peak = max(memory.scoring(s.model, batch, form, parts, nf4).total for batch in batches)
    return _need(s, peak, _host(s, config, 4 * s.model.weights))


def generate(s: Setting, config: Config) -> Need:
    """Of one sampling process."""
    part = config.generate
    return _of_engine(s, config, ENGINES[part.engine].footprint(config.runtime), part.max_new_tokens, part.logprobs)


def _of_engine(s: Setting, config: Config, use: Footprint, new: int = 0, logprobs: bool = False) -> Need:
    """Of an engine that takes a share of each GPU: that, or more where its weights alone are more. Of another: what
    `new` tokens need."""
    if not (use.gpu_share and s.hardware.gpu):
        return _sampling(s, config, new, logprobs)
    least = s.model.weights * s.model.bytes_on_disk / use.gpus + 3 * GIB
    taken = s.hardware.gpu.gib * GIB * use.gpu_share
    return Need(taken if least <= taken else least / use.gpu_share, use.processes * use.gpus * PROCESS["cuda"])


def _sampling(s: Setting, config: Config, new: int, logprobs: bool = False) -> Need:
    """Of the transformers engine: every slot may have the longest prompt."""
    width = s.model.bytes_on_disk if s.hardware.gpu else 4
    slots, longest = config.runtime.generate_batch, config.chat.max_prompt_length
    peak = memory.generating(s.model, [longest] * slots, slots, new, width, sharded(config), logprobs).total
    return _need(s, peak, _host(s, config, width * s.model.weights, config.runtime.workers))


def evaluate(s: Setting, config: Config) -> Need:
    """Likelihoods as score, answers as generate: one after the other."""
    part, use = config.evaluate, ENGINES[config.generate.engine].footprint(config.runtime)
    return max([score(s, config)] + ([_of_engine(s, config, use, part.max_new_tokens)] if part.answers else []))


def harness(s: Setting, config: Config) -> Need:
    """lm-evaluation-harness with transformers: weights as on disk, all logits of a batch and their log-softmax. On one
    GPU, or one engine of vLLM's."""
    use = BACKENDS[config.harness.backend].engine.footprint(config.runtime) if config.harness else None
    if use and use.gpu_share:
        return _of_engine(s, config, use)
    width, tokens = s.model.bytes_on_disk if s.hardware.gpu else 4, config.runtime.harness_batch * 1024
    each = 4 * s.model.hidden * width + 3 * s.model.intermediate * width + 2 * s.model.vocab * width
    return _need(s, s.model.weights * width + tokens * each, PROCESS[s.device] + s.model.weights * width)


NEEDS: dict[str, Callable[[Setting, Config], Need]] = {
    "sft": sft, "generate": generate, "score": score, "finetune": finetune, "evaluate": evaluate, "harness": harness,
}  # fmt: skip


def of(stage: str, s: Setting, config: Config) -> Need:
    """Of a stage; where one was measured on this card, as that corrects it: the tensors, not what CUDA takes."""
    need, correction = NEEDS[stage](s, config), correction_of(stage, s, config)
    if correction is None or config.runtime.compute.sharding != "none":  # no sharded one was measured
        return need
    return need._replace(gpu=CONTEXT + (need.gpu - CONTEXT) * correction.memory)


def correction_of(stage: str, s: Setting, config: Config) -> Correction | None:
    """What was measured of a stage on this card; None for an engine that was not."""
    answering = stage == "generate" or (stage == "evaluate" and config.evaluate.answers)
    engines = {config.at(t).generate.engine for t in range(config.iterations)} if answering else set()
    if s.hardware.gpu is None or not engines <= {"transformers"}:
        return None
    return measured.nearest(s.hardware.gpu.name, stage, s.model.weights)


def sharded(config: Config) -> int:
    """In how many parts the weights are while a model is only read."""
    compute = config.runtime.compute
    return compute.world if memory.SHARDED[compute.sharding] >= 3 else 1


def _host(s: Setting, config: Config, weights: float, workers: int = 1) -> float:
    """Of a node: its processes, and the weights on their way to the GPU, in each process, or with divided weights in
    the first alone. On a CPU the weights are there already."""
    count = config.runtime.compute.processes if config.runtime.compute.world > 1 else workers
    if not s.hardware.gpu:
        return count * PROCESS["cpu"]
    # Weights that will be divided are read by the first process alone, in the dtype of their files.
    read = s.model.weights * s.model.bytes_on_disk if sharded(config) > 1 else count * weights
    return count * PROCESS["cuda"] + read


def _need(s: Setting, peak: float, host: float) -> Need:
    if s.hardware.gpu:
        return Need(peak * SPARE + CONTEXT, host)
    return Need(0, host + peak * SPARE)
