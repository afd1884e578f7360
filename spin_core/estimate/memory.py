"""Peak memory of a process of finetune (and sft), score and generate: bytes on its device, part by part.

Is not: the time (that is `work`), nor the judgement of what fits (that is `fit`). One process of `world`, of which
each holds a part of what `sharding` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spin_core.config.choices import Optimizer
from spin_core.estimate.activations import Form, PassShape, head, saved_by_layer, work_of_layer, work_of_reading
from spin_core.estimate.architecture import Architecture

STATES = {"rmsprop": 1, "adamw": 2}
"""Float32 numbers that an optimiser keeps for each weight."""
PLAIN = Form()
SHARDED = {"none": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}
"""How much is divided: 1 the optimiser's state, 2 gradients too, 3 weights too."""
ZERO_BUCKET, ZERO_LIVE = 500_000_000, 1_000_000_000
"""DeepSpeed's defaults: numbers in the bucket that gradients are reduced in, which is allocated in full however small
the model (twice where it reduces one while the other is filled), and gathered weights that ZeRO-3 keeps."""
PREFILL_TOKENS = 2048
"""As in `spin_core/engines/slots.py`, which loads torch; a test compares them."""


@dataclass(frozen=True)
class Training:
    """What decides over the memory of a training process. `passes`: micro-batches of a step in one process."""

    batch: PassShape
    form: Form = PLAIN
    optimizer: Optimizer = "rmsprop"
    checkpointing: bool = False
    passes: int = 2
    sharding: str = "none"
    offload: str = "none"
    world: int = 1
    nf4: bool = False


@dataclass(frozen=True)
class Peak:
    """Bytes at the fullest moment. `phase`: which one that is."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    phase: str

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def training(a: Architecture, how: Training) -> Peak:
    """The fullest moment of an optimiser step in steady state (the optimiser's state is there).

    Moments: the output layer forward and backward, each layer's backward pass (with `checkpointing` after it was
    computed again), the embeddings' gradient, and the optimiser's step.
    """
    stage, world, all_weights = SHARDED[how.sharding], how.world, how.form.rank == 0
    trained = a.weights if all_weights else a.adapter(how.form.rank)
    held = (_base(a, how.nf4) + (0 if all_weights else 4 * trained)) // (world if stage >= 3 else 1)
    gathered, buckets = _of_processes(a, how, trained)
    gradients = 4 * trained // (world if stage >= 2 else 1)
    state = 4 * trained * STATES[how.optimizer] // (world if stage >= 1 else 1)
    if how.sharding.startswith("zero"):  # it steps on a float32 copy of its part
        state += 4 * trained // world
    step = _of_step(a, how, trained)
    if how.offload != "none":
        gradients, state, step = 0 if stage >= 2 else gradients, 0, 0
    if how.offload == "weights":
        held = 0
    full = how.passes > 1
    moments = {"optimiser's step": (gradients, step)}
    for phase, sofar, live in _moments(a, how, full):
        before = gradients if full else min(gradients, sofar)
        if phase not in moments or before + live > sum(moments[phase]):
            moments[phase] = (before, live)
    phase = max(moments, key=lambda name: sum(moments[name]))
    there, live = moments[phase]
    return Peak(held + gathered, there + buckets, state, live, phase)


def _of_processes(a: Architecture, how: Training, trained: int) -> tuple[int, int]:
    """(weights that are gathered for a moment, buffers of gradients on their way). ZeRO-3 keeps a billion gathered
    weights for their next use, and as many more in the messages that they came in."""
    stage = SHARDED[how.sharding]
    if how.sharding.startswith("zero"):
        gathered = 2 * 4 * min(a.weights, ZERO_LIVE) if stage >= 3 else 0
        return gathered, 4 * ZERO_BUCKET * (2 if stage < 3 and how.form.device == "cuda" else 1)
    if how.world == 1:
        return 0, 0
    if stage >= 3:  # gradients: a layer's, twice while they are sent, and the output layer's; last the outermost ones
        copies = 2 * a.layer if how.form.device == "cpu" else 0  # gloo gathers and reduces in buffers of its own
        return 4 * _in_use(a), 4 * (max(2 * a.layer + a.embeddings, 2 * _outermost(a)) + copies)
    return 0, 4 * trained


def _in_use(a: Architecture) -> int:
    """Weights that FSDP2 has gathered at once: of a layer and the next, and the outermost."""
    return 2 * a.layer + _outermost(a)


def _outermost(a: Architecture) -> int:
    """Weights of embeddings and output layer, which FSDP2 gathers together."""
    return a.embeddings * (1 if a.tied else 2)


def _base(a: Architecture, nf4: bool) -> int:
    """Bytes of the model's own weights: float32, or 4 bit and bfloat16 (quantised constants: 0.127 bit a weight)."""
    if not nf4:
        return 4 * a.weights
    return int(a.matrices * (4 + 0.127) / 8) + 2 * (a.weights - a.matrices)


def _of_step(a: Architecture, how: Training, trained: int) -> int:
    """What the optimiser computes with: on CUDA (foreach) a number for each weight that it steps, on CPU of one weight
    matrix after the other. (AdamW on CPU: two.)"""
    if how.form.device == "cuda":
        return 4 * trained // (how.world if SHARDED[how.sharding] else 1)
    rank = how.form.rank
    largest = rank * max(map(max, a.linears)) if rank else max(a.embeddings, a.hidden * a.intermediate)
    return 4 * largest * STATES[how.optimizer]


def _moments(a: Architecture, how: Training, full: bool) -> list[tuple[str, int, int]]:
    """(phase, bytes of gradients that there are by then in a step's first pass, bytes alive besides)."""
    batch, form, all_weights = how.batch, how.form, how.form.rank == 0
    layer, work = saved_by_layer(a, batch, form), work_of_layer(a, batch, form)
    stream = batch.tokens * 4 * a.hidden
    kept = stream if how.checkpointing else layer
    # Autocast keeps the bfloat16 copy of a weight that is trained, where weights are unsharded; else the graph does.
    cached = all_weights and SHARDED[how.sharding] < 3
    casts = 2 * a.matrices if form.width == 2 and (cached or not how.checkpointing) else 0
    one_cast = 2 * a.layer if form.width == 2 and not casts else 0
    forward, backward = head(a, batch, form, full)
    logits = 4 * a.embeddings if all_weights else 0
    moments = [
        ("output layer, forward", 0, casts + a.layers * kept + forward),
        ("output layer, backward", 0, casts + a.layers * kept + backward),
    ]
    each = 4 * a.layer if all_weights else 4 * a.adapter(form.rank) // a.layers
    for left in range(a.layers, 0, -1):
        again = layer if how.checkpointing else 0
        live = casts + left * kept + again + work + one_cast
        moments.append(("layers, backward", logits + (a.layers - left) * each, live))
    if all_weights:
        moments.append(("embeddings, backward", logits + a.layers * each, casts + 4 * a.embeddings + stream))
    return moments


def scoring(a: Architecture, batch: PassShape, form: Form, sharded: int = 1, nf4: bool = False) -> Peak:
    """A pass of score or evaluate: float32 weights (or `nf4`), of which a process holds 1/`sharded`."""
    gathered = 4 * _in_use(a) if sharded > 1 else 0
    return Peak(_base(a, nf4) // sharded + gathered, 0, 0, work_of_reading(a, batch, replace(form, rank=0)), "a pass")


def generating(
    a: Architecture, prompts: Sequence[int], slots: int, new: int, width: int, sharded: int = 1, logprobs: bool = False
) -> Peak:
    """The transformers engine: weights and keys in `width` bytes, `slots` rows of the longest prompt and `new` tokens,
    prompts read 2,048 tokens at a time, logits of one token a row (`slots.py`, `decoding.py`)."""
    longest, rows = max(prompts), min(slots, len(prompts))
    cache = 2 * a.layers * rows * (longest + new - 1) * a.keys * width
    together = min(max(1, PREFILL_TOKENS // longest), rows)
    read = together * longest
    filling = read * (width * (4 * a.hidden + 3 * a.intermediate) + 8 * a.head_dim) + read * longest * width
    drawing = rows * a.vocab * (width + 4 + 4 + 8 + (8 if logprobs else 0))
    gathered = width * _in_use(a) if sharded > 1 else 0
    return Peak(a.weights * width // sharded + gathered, 0, 0, cache + max(filling, drawing), "sampling")
