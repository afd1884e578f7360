"""The cost sheet as plain text of at most 100 columns, with what its numbers rest on below."""

from __future__ import annotations

from spin_core.config.profile import Config
from spin_core.estimate import needs, sheet, work
from spin_core.estimate.needs import GIB, Setting
from spin_core.estimate.sheet import StageCost

COLUMNS = {
    "stage": 10, "steps": 6, "GPUs": 6, "GPU-hours": 11, "wall": 10, "memory/GPU": 12, "host memory": 13, "store": 11,
    "scratch": 11,
}  # fmt: skip
"""Head of a column → its width."""


def table(costs: list[StageCost]) -> list[str]:
    """Head, a line for each stage, and the total."""
    rows = [list(COLUMNS)]
    for line in [*costs, sheet.total(costs)]:
        used = line.gpu_seconds
        hours = "–" if used is None else f"{used / 3600:,.1f}" if used else ""
        sizes = (line.need.gpu, line.need.host, line.store, line.scratch)
        rows.append([line.stage, f"{line.steps:,}", str(line.gpus or ""), hours, span(line.seconds), *map(size, sizes)])
    first, *others = COLUMNS.values()
    return [(row[0].ljust(first) + "".join(map(str.rjust, row[1:], others))).rstrip() for row in rows]


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


def basis(s: Setting, config: Config, costs: list[StageCost], nothing_cached: bool) -> list[str]:
    """What the numbers rest on, a line for each kind."""
    prompt, (real, new) = needs.lengths(s, config, config.finetune)
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
    lines += [
        f"Scoring: {line.tokens:,.0f} tokens, {line.saved / (line.tokens + line.saved):.0%} fewer than pair by pair."
        for line in costs
        if line.saved
    ]
    lines += _corrected(s, config, costs)
    if nothing_cached:
        lines.append("Counted is a run of which nothing is cached.")
    return lines


def _corrected(s: Setting, config: Config, costs: list[StageCost]) -> list[str]:
    """Which stages of the sheet a measurement corrects, a line for each measurement."""
    corrections = {line.stage: needs.correction_of(line.stage, s, config) for line in costs}
    by: dict[tuple[str, str, int], list[str]] = {}
    for stage, one in corrections.items():
        if one:
            by.setdefault((one.card, one.date, one.weights), []).append(stage)
    return [
        f"Corrected by a measurement on {card}, {date} ({weights(size)} weights): {', '.join(stages)}."
        for (card, date, size), stages in by.items()
    ]
