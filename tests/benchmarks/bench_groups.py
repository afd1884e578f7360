"""How much faster ours trains where all pairs of a prompt are one group (`finetune.order: prompts`): rows of
`bench_train`.

Both ways take the same pairs in every step, all of them, so that they train the same thing; the opponent is scored in
neither's time. Not a comparison with another program: none shares a real answer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from spin_core.errors import BadInput
from tests.benchmarks.bench_data import Row, make_pairs
from tests.benchmarks.bench_work import Work

CASES = {2: "history 2: real + 2 generated", 4: "real + 4 generated"}
"""Generated answers to a prompt → what has so many."""
Run = Callable[[Work], dict[str, Any]]


def make_groups(
    rows: list[tuple[str, str]], chat: Any, prompts: int, answers: int, name: str = "short"
) -> tuple[list[Row], list[list[int]]]:
    """Pairs as `make_pairs`, so many generated answers to each prompt and its real one; and which pairs share these."""
    drawn = make_pairs(rows, chat, prompts * answers, name, seed=1)
    pairs = [(*drawn[i][:2], drawn[i * answers + k][2]) for i in range(prompts) for k in range(answers)]
    return pairs, [[i * answers + k for k in range(answers)] for i in range(prompts)]


def measure(work: Work, cases: dict[int, tuple[list[Row], list[list[int]]]], repeats: int, run: Run) -> list[dict]:
    """Of each case how many times faster groups are than pairs, by the medians of `repeats` runs in turn, and how many
    times fewer tokens they take. Raises BadInput where the two do not train the same thing."""
    lines = []
    for answers, (rows, groups) in cases.items():
        pairs = replace(work, rows=rows, batch=len(rows), scored=False)
        grouped = replace(pairs, together=groups)
        runs: dict[str, list[dict[str, Any]]] = {"pairs": [], "groups": []}
        for _ in range(repeats):
            runs["pairs"].append(run(pairs))
            runs["groups"].append(run(grouped))
        losses = (runs[name][0]["losses"] for name in runs)
        difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
        if not difference <= 2e-3:
            raise BadInput(f"groups of {answers} answers: the loss differs by {difference:.2g} from that of the pairs")
        line: dict[str, Any] = {"answers": answers, "prompts": len(groups), "loss_difference": difference}
        for clock in ("wall", "cpu"):
            slow, fast = ([one[clock] for one in runs[name]] for name in ("pairs", "groups"))
            line[clock] = statistics.median(slow) / statistics.median(fast)
            line[f"{clock}_spread"] = [min(slow) / max(fast), max(slow) / min(fast)]
        lines.append(line | {"tokens": pairs.useful_tokens / grouped.grouped_tokens})
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown."""
    head = "| groups : pairs (finetune.order) | prompts | time, wall | time, CPU | fewer tokens | loss differs by |"
    made = [
        f"| {CASES.get(one['answers'], one['answers'])} | {one['prompts']} | **{one['wall']:.2f}×** "
        f"({one['wall_spread'][0]:.2f}–{one['wall_spread'][1]:.2f}) | {one['cpu']:.2f}× | {one['tokens']:.2f}× | "
        f"{one['loss_difference']:.1e} |"
        for one in lines
    ]
    return "\n".join([head, "|---" * 6 + "|", *made]) + "\n" if lines else ""
