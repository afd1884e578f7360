"""How long the stages take on a GPU: operations over its peak, bytes over its bandwidth, each times what is usually
reached of it.

Is not: a benchmark. The shares below are assumptions, listed in the sheet's last lines; what steps took is in their
records. Times are seconds of one GPU-filling process; `sheet` divides by processes.
"""

from __future__ import annotations

from spin_core.estimate.activations import PassShape
from spin_core.estimate.architecture import Architecture
from spin_core.estimate.hardware import Gpu

TRAINING, SCORING, BANDWIDTH = 0.40, 0.45, 0.60
"""Of the peak that matrix products reach in training and scoring, and of the memory's bandwidth when sampling."""
ACROSS = 50.0
"""GB/s between nodes, for each GPU (400 Gb/s adapters)."""
HOST = 25.0
"""GB/s between a GPU and the host's memory."""


def reading_flops(a: Architecture, batch: PassShape) -> float:
    """Of a forward pass: two per weight and token, the output layer for labels, attention for what is seen."""
    seen = sum(p * p / 2 + sum(n * p + n * n / 2 for n in answers) for p, answers in batch.groups)
    return 2.0 * a.matrices * batch.tokens + 2.0 * a.embeddings * batch.labels + 4.0 * a.layers * a.queries * seen


def training_flops(a: Architecture, batch: PassShape, checkpointing: bool, adapter: bool) -> float:
    """Forward, backward (twice as much; with an adapter no gradients of the weights), and forward once more."""
    return reading_flops(a, batch) * (2 + (not adapter) + checkpointing)


def gathering_seconds(a: Architecture, gpu: Gpu, times: int, nodes: int, processes: int) -> float:
    """Of sending all float32 weights to every GPU so many times in a pass; it overlaps with computing. One copy enters
    a node, by the adapters of all its GPUs."""
    speed = min(gpu.link, ACROSS * processes) if nodes > 1 else gpu.link
    return times * 4 * a.weights / (speed * 1e9 * BANDWIDTH)


def offload_seconds(a: Architecture, world: int) -> float:
    """Of an optimiser step in the host's memory: gradients down, weights up, and the step itself about as long."""
    return 3 * 4 * a.weights / world / (HOST * 1e9)


def sampling_seconds(
    a: Architecture, gpu: Gpu, rows: int, prompt: float, new: float, flight: int, layer_seconds: float, gpus: int
) -> float:  # fmt: skip
    """Of sampling `new` tokens behind prompts of `prompt` tokens for `rows` rows, `flight` of them at once, on `gpus`
    that share a model: weights, keys and values are read in each step. `layer_seconds`: see `Engine`."""
    if not rows:
        return 0.0
    peak, speed = gpu.bfloat16 * 1e12 * SCORING * gpus, gpu.bandwidth * 1e9 * BANDWIDTH * gpus
    steps = max(rows / flight, 1.0) * new
    flight = min(flight, rows)
    width = a.bytes_on_disk
    cache = 2 * a.layers * a.keys * width * (prompt + new / 2) * flight
    reading = (a.matrices + a.embeddings) * width + cache
    computing = 2.0 * (a.matrices + a.embeddings) * flight / peak
    each = max(reading / speed, computing) + a.layers * layer_seconds
    return steps * each + 2.0 * a.matrices * prompt * rows / peak
