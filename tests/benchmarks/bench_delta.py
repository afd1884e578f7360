"""How much of a model is a delta: θ_t and θ_{t+1} as they lie in the store, in bits, and what a bit-exact delta would
take on disk beside the whole model.

`python -m tests.benchmarks.bench_delta OLD NEW` (two folders with safetensors of one architecture) prints a Markdown
table. A delta is bit-exact: `new = old xor delta`, or the difference of the bits read as integers (a weight that moves
to the next number of its sign is ±1 there), one tensor at a time; both also with the bytes of each weight apart (first
all low bytes, then all high ones), which compressors like better. Compressed by zstd, level 3, as is the whole model.

Is not: a way to store models. bench_delta.md beside this file has what it measured of a real training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from spin_core.engines.checkpoint import Checkpoint

Bits = np.ndarray  # unsigned integers of a weight's width, one for each weight
LEVEL = 3
WAYS: dict[str, Callable[[Bits, Bits], Bits]] = {
    "whole model": lambda _, new: new,
    "xor": lambda old, new: old ^ new,
    "integer difference": lambda old, new: zigzag(new - old),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    given = parser.parse_args()
    print(table(measure(given.old, given.new)))


def measure(old: Path, new: Path) -> dict[str, float]:
    """Counts over all tensors, and bytes of each way."""
    codec = pa.Codec("zstd", compression_level=LEVEL)
    made: dict[str, float] = {"weights": 0, "changed": 0, "bits": 0, "bits_changed": 0, "bytes": 0}
    for before, after in tensors(old, new):
        changed = before ^ after
        made["weights"] += after.size
        made["bytes"] += after.nbytes
        made["changed"] += np.count_nonzero(changed)
        made["bits"] += after.nbytes * 8
        made["bits_changed"] += int(np.bitwise_count(changed).sum()) if hasattr(np, "bitwise_count") else ones(changed)
        for way, delta in WAYS.items():
            raw = delta(before, after)
            apart = np.ascontiguousarray(raw.view(np.uint8).reshape(-1, raw.itemsize).T)
            for name, content in ((way, raw), (f"{way}, bytes apart", apart)):
                made[name] = made.get(name, 0) + len(codec.compress(content.tobytes(), asbytes=True))
    return made


def zigzag(difference: Bits) -> Bits:
    """0, −1, 1, −2 … as 0, 1, 2, 3 …: small in both directions, without a sign that fills the high byte."""
    width = difference.itemsize * 8
    signed = difference.view(np.dtype(f"i{difference.itemsize}"))
    return ((signed << 1) ^ (signed >> (width - 1))).view(difference.dtype)


def undo_zigzag(coded: Bits) -> Bits:
    """`zigzag` backwards: what makes the integer difference bit-exact."""
    return (coded >> 1) ^ (np.zeros_like(coded) - (coded & 1))


def ones(bits: Bits) -> int:
    return int(np.unpackbits(np.ascontiguousarray(bits).view(np.uint8)).sum())


def tensors(old: Path, new: Path) -> Iterator[tuple[Bits, Bits]]:
    """Each tensor of both models as unsigned integers. Raises ValueError where the two are no models of one shape."""
    before, after = dict(bits_of(old)), dict(bits_of(new))
    if {name: (one.shape, one.dtype) for name, one in before.items()} != {
        name: (one.shape, one.dtype) for name, one in after.items()
    }:
        raise ValueError(f"{old} and {new} have other tensors: a delta needs two models of one architecture and dtype.")
    for name in after:
        yield before[name], after[name]


def bits_of(folder: Path) -> Iterator[tuple[str, Bits]]:
    """The tensors of a model's directory. Raises BadInput for one without weights."""
    import torch

    with Checkpoint(folder) as checkpoint:
        for name, tensor in checkpoint.tensors():
            raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
            yield name, raw.view(np.dtype(f"u{tensor.element_size()}")).reshape(tensor.shape)


def table(made: dict[str, float]) -> str:
    lines = [
        f"{made['weights'] / 1e6:,.1f} M weights; {made['changed'] / made['weights']:.1%} of them and "
        f"{made['bits_changed'] / made['bits']:.2%} of their bits differ.",
        "",
        "| zstd, level 3 | MB | of the whole model |",
        "|---|---|---|",
        f"| whole model, as it is | {made['bytes'] / 1e6:,.1f} | 100 % |",
    ]
    for way in WAYS:
        for name in (way, f"{way}, bytes apart"):
            lines.append(f"| {name} | {made[name] / 1e6:,.1f} | {made[name] / made['bytes']:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
