"""An instruction set of short tasks with one right answer each, made by rule.

Not natural language, and no benchmark: it is there so that exact match can be counted in seconds.

inputs   none
outputs  `rows.jsonl`: {"prompt", "response"}; no prompt of one split occurs in the other
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Literal

from spin_core.config.base import Section
from spin_core.job import Inputs, Job

NAME = "demo_rows"
VERSION = 1
LETTERS = "abcdefghijkl"


class Config(Section):
    """Which half of which set."""

    seed: int
    split: Literal["train", "test"]
    train_rows: int = 12000
    test_rows: int = 1000


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write rows.jsonl; give the count."""
    rows = make_rows(config.seed, config.train_rows + config.test_rows)
    kept = rows[: config.test_rows] if config.split == "test" else rows[config.test_rows :]
    with (job.out / "rows.jsonl").open("w", encoding="utf-8") as out:
        out.writelines(json.dumps({"prompt": prompt, "response": answer}) + "\n" for prompt, answer in kept)
    return {"rows": len(kept)}


def make_rows(seed: int, count: int) -> list[tuple[str, str]]:
    """`count` different prompts with their answers, the families in turn, then shuffled."""
    draw = random.Random(f"spinloop-demo-{seed}")  # noqa: S311 - no secret
    rows: dict[str, str] = {}
    while len(rows) < count:
        prompt, answer = FAMILIES[len(rows) % len(FAMILIES)](draw)
        rows.setdefault(prompt, answer)
    shuffled = list(rows.items())
    draw.shuffle(shuffled)
    return shuffled


def _word(draw: random.Random, shortest: int, longest: int, letters: str = LETTERS) -> str:
    return "".join(draw.choice(letters) for _ in range(draw.randint(shortest, longest)))


def _reverse(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 4, 8)
    return f"Reverse: {word}", word[::-1]


def _sort(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 4, 8)
    return f"Sort: {word}", "".join(sorted(word))


def _unique(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 4, 8, LETTERS[:6])
    return f"Unique: {word}", "".join(dict.fromkeys(word))


def _swap_halves(draw: random.Random) -> tuple[str, str]:
    word = _word(draw, 4, 8)
    half = len(word) // 2
    return f"Swap: {word}", word[half:] + word[:half]


FAMILIES: list[Callable[[random.Random], tuple[str, str]]] = [_reverse, _sort, _unique, _swap_halves]
