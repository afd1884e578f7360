"""The cost sheet as plain text of at most 100 columns, with what its numbers rest on below."""

from __future__ import annotations

from collections.abc import Sequence

from spin_core.config.profile import Config
from spin_core.estimate import needs, sheet, work
from spin_core.estimate.needs import GIB, Setting
from spin_core.estimate.sheet import StageCost

HEAD = ("stage", "steps", "GPUs", "GPU-hours", "wall", "memory/GPU", "host memory", "store", "scratch")
WIDE = (10, 6, 6, 11, 10, 12, 13, 11, 11)


def table(costs: Sequence[StageCost]) -> list[str]:
    """Head, a line for each stage, and the total."""
    rows = [HEAD, *(_cells(line) for line in costs), _cells(sheet.total(list(costs)))]
    return [_aligned(cells).rstrip() for cells in rows]


def _aligned(cells: tuple[str, ...]) -> str:
    return cells[0].ljust(WIDE[0]) + "".join(cell.rjust(wide) for cell, wide in zip(cells[1:], WIDE[1:], strict=True))


def _cells(line: StageCost) -> tuple[str, ...]:
    hours = "–" if line.gpu_hours is None else f"{line.gpu_hours:,.1f}" if line.gpu_hours else ""
    sizes = (line.need.gpu, line.need.host, line.store, line.scratch)
    return (
        line.stage, f"{line.steps:,}", str(line.gpus or ""), hours, span(line.seconds), *(size(part) for part in sizes)
    )  # fmt: skip


def span(seconds: float | None) -> str:
    """A time as people say it; – for an unknown one."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return "< 1 min"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} d"


def weights(count: int) -> str:
    """A number of weights as people say it."""
    return f"{count / 1e9:,.2f} billion" if count >= 1e9 else f"{count / 1e6:,.3g} million"


def size(count: float) -> str:
    """Bytes as people say them; empty for none."""
    if not count:
        return ""
    for unit, name in ((GIB * 1024, "TiB"), (GIB, "GiB"), (1 << 20, "MiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}" if count < 10 * unit else f"{count / unit:,.0f} {name}"
    return "< 1 MiB"


def basis(s: Setting, config: Config, nothing_cached: bool) -> list[str]:
    """What the numbers rest on, a line for each kind."""
    prompt, real, new = needs.lengths(
        s.data, config.chat.max_prompt_length, config.finetune.max_length, config.generate.max_new_tokens
    )
    lines = [
        f"GPU: {s.hardware.description}." if s.hardware.gpu else f"For {s.hardware.description}.",
        f"Model: {weights(s.model.weights)} weights. Rows: {s.data.train:,} to train, {s.data.test:,} held out.",
        f"Tokens: prompt {prompt:,}, real answer {real:,}, generated {new:,} ({s.data.basis}).",
    ]
    if s.hardware.gpu:
        lines.append(
            f"Time: {work.TRAINING:.0%} of the GPU's peak in training, {work.SCORING:.0%} in scoring, "
            f"{work.BANDWIDTH:.0%} of its bandwidth in sampling."
        )
        lines.append("Memory: tensors at their fullest, 5% for the allocator, 1 GiB for CUDA. Host memory: a node's.")
    if nothing_cached:
        lines.append("Counted is a run of which nothing is cached.")
    return lines
