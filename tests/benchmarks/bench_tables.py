"""From the training benchmark's raw figures to ratios, to its Markdown page, and to what was aimed at."""

from __future__ import annotations

import statistics
from typing import Any

from tests.benchmarks import bench_groups, bench_prefix

NAMES = {
    "reference": "reference's way, float32",
    "trl": "TRL's DPOTrainer, float32",
    "ours": "spinloop, float32",
    "reference-bf16": "reference's way, bfloat16",
    "trl-bf16": "TRL's DPOTrainer, bfloat16",
    "ours-bf16": "spinloop, bfloat16",
}
COMPARED = [
    ("ours", "reference"), ("ours", "trl"), ("ours-bf16", "reference"), ("ours-bf16", "reference-bf16"),
    ("ours-bf16", "trl-bf16"),
]  # fmt: skip
TARGETS = {
    ("ours", "reference", "short"): 2.5, ("ours", "reference", "long"): 3.0, ("ours-bf16", "reference", "long"): 5.0,
    ("ours", "trl", "short"): 1.7, ("ours", "trl", "long"): 1.7,
    ("ours", "reference", "short-1"): 2.8, ("ours", "reference", "long-1"): 3.3,
    ("ours", "trl", "short-1"): 2.2, ("ours", "trl", "long-1"): 2.2,
    ("ours-bf16", "trl-bf16", "short"): 1.7, ("ours-bf16", "trl-bf16", "long"): 1.7,
}  # fmt: skip
MEMORY_TARGET = 5.0
Spread = dict[str, float]


def spread(values: list[float]) -> Spread:
    """Least, median and largest."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def ratios(report: dict[str, Any]) -> list[dict[str, Any]]:
    """How many times faster (wall, cpu: spreads over the repeats, each against its neighbour in time) and how many
    times less memory above the weights; `target` and `memory_target` where there is one."""
    results = []
    for name, part in report["sets"].items():
        for fast, slow in COMPARED:
            line: dict[str, Any] = {"set": name, "of": fast, "to": slow, "target": TARGETS.get((fast, slow, name))}
            mine, theirs = part["runs"].get(fast), part["runs"].get(slow)
            if mine and theirs:
                for clock in ("wall", "cpu"):
                    line[clock] = spread([b[clock] / a[clock] for a, b in zip(mine, theirs, strict=True)])
            if fast in part["memory"] and slow in part["memory"]:
                key = "any_step_above_weights"
                both = part["memory"][slow][key], part["memory"][fast][key]
                kept = kept_of(report)
                line["memory"] = both[0] / both[1]
                line["activations"] = (both[0] - kept) / (both[1] - kept)
                line["memory_target"] = MEMORY_TARGET if slow == "reference" else None
            if "wall" in line or "memory" in line:
                results.append(line)
    return results


def kept_of(report: dict[str, Any]) -> float:
    """MB of float32 gradients and RMSprop's state, the same in every way: all else above the weights is activations."""
    return float(report["settings"]["weights"]) * 8 / 1e6


def verdicts(lines: list[dict[str, Any]]) -> list[str]:
    """One sentence for each aim: met or missed."""
    sentences = []
    for line in lines:
        what = f"{line['set']}, {line['of']} : {line['to']}"
        if line["target"] and "wall" in line:
            got = line["wall"]["median"]
            sentences.append(f"{_met(got, line['target'])} {what}: {got:.2f}× the pairs/s (aim {line['target']}×)")
        if line.get("memory_target"):
            for key, of in (("memory", "memory above the weights"), ("activations", "activations' memory")):
                sentences.append(f"{_met(line[key], MEMORY_TARGET)} {what}: 1/{line[key]:.1f} of the {of} (aim 1/5)")
    return sentences


def page(report: dict[str, Any]) -> str:
    """The full Markdown page."""
    sets = (_set_table(name, part, kept_of(report)) for name, part in report["sets"].items())
    parts = [_head(report), *sets, _ratio_table(report), bench_groups.table(report.get("groups", []))]
    return "\n".join(part for part in parts if part)


def _met(got: float, aim: float) -> str:
    return "met   " if got >= aim else "MISSED"


def _head(report: dict[str, Any]) -> str:
    s, m, v = report["settings"], report["machine"], report["versions"]
    where = m["gpu"] or f"{m['architecture']} ({', '.join(m['features'])}), {s['threads']} threads of {m['cpus']} CPUs"
    versions = ", ".join(f"{name} {version}" for name, version in v.items() if version)
    return (
        f"{s['model']} ({s['weights'] / 1e6:.1f} M weights), {s['pairs']} pairs of {s['data']}, {s['epochs']} epochs, "
        f"{s['batch']} pairs a step, RMSprop at lr {s['lr']:g}; one pass has {s['micro']} pairs where it pads and "
        f"{_budget(s['micro_tokens'])} where it packs; {where}; {versions}. Scoring of the opponent included, "
        f"loading of models not. {s['repeats']} repeats in alternating processes: median (least–largest) of wall time; "
        f"CPU-time ratios beside it.{_slow_half(report)}\n"
    )


def _budget(tokens: int) -> str:
    """What `runtime.micro_tokens` lets into a pass; a pair at least."""
    return "one pair" if tokens == 1 else f"up to {tokens or 2048:,} tokens"


def _slow_half(report: dict[str, Any]) -> str:
    """A warning where bfloat16 has no hardware: its times are then those of an emulation."""
    m, ways = report["machine"], report["settings"]["ways"]
    has_it = m["gpu"] or any("bf16" in feature for feature in m["features"])
    return "" if has_it or not any("bf16" in way for way in ways) else " This CPU has no bfloat16 instructions."


def _set_table(name: str, part: dict[str, Any], kept: float) -> str:
    """What each way did on one set."""
    sizes = part["lengths"]
    text = ", ".join(f"{what} {s['min']:.0f}–{s['max']:.0f}" for what, s in sizes.items())
    gpu = any("flops_used" in s for s in part["speed"].values())
    head = ["way", "pairs/s", "of which scoring", "models held", "peak above the weights", "of it activations"]
    head += ["above the policy's weights", "loss differs by"] + (["useful tokens/s", "model FLOPs used"] if gpu else [])
    what = "; an iteration after the first: the pairs of t and t−1, two to a prompt" if name.endswith("-1") else ""
    lines = [f"**{name}** (tokens: {text}{what})\n", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for way in dict.fromkeys([*part["runs"], *part["memory"]]):
        lines.append(f"| {' | '.join(_cells(way, part, kept, gpu))} |")
    if "common_prefix" in part:
        found = bench_prefix.Prefix(**part["common_prefix"])
        lines.append("\n" + bench_prefix.sentence("Common first tokens of both answers, computed twice", found) + ".")
    return "\n".join(lines) + "\n"


def _cells(way: str, part: dict[str, Any], kept: float, gpu: bool) -> list[str]:
    runs, memory, speed = part["runs"].get(way), part["memory"].get(way), part["speed"].get(way)
    cells = [NAMES[way]]
    if runs and speed:
        scoring = statistics.median(run["parts"].get("score", {"wall": 0.0})["wall"] / run["wall"] for run in runs)
        cells += [_spread(speed["pairs_per_second"], 3), f"{scoring:.0%}" if scoring else "–"]
    else:
        cells += ["–", "–"]
    if memory:
        peak, above_policy = memory["any_step_above_weights"], memory["any_step_above_policy"]
        cells += [str(memory["models"]), *(f"{figure:,.0f} MB" for figure in (peak, peak - kept, above_policy))]
    else:
        cells += ["–"] * 4
    cells.append(f"{speed['loss_difference']:.1e}" if speed and speed["loss_difference"] is not None else "–")
    if gpu:
        cells += [f"{speed['useful_tokens_per_second']:,.0f}", f"{speed['flops_used']:.1%}"] if speed else ["–", "–"]
    return cells


def _ratio_table(report: dict[str, Any]) -> str:
    lines = [
        "| set | ratio | pairs/s, wall | pairs/s, CPU time | memory above weights | activations |",
        "|---" * 6 + "|",
    ]
    for line in report["ratios"]:
        speed = ["–", "–"]
        if wall := line.get("wall"):
            shown = f"**{wall['median']:.2f}×** ({wall['min']:.2f}–{wall['max']:.2f})"
            speed = [shown, f"{line['cpu']['median']:.2f}×"]
        memory, rest = (f"1/{line[key]:.1f}" if key in line else "–" for key in ("memory", "activations"))
        cells = [line["set"], f"{NAMES[line['of']]} : {NAMES[line['to']]}", *speed, memory, rest]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if report["ratios"] else ""


def _spread(values: Spread, digits: int) -> str:
    return f"{values['median']:.{digits}f} ({values['min']:.{digits}f}–{values['max']:.{digits}f})"
