"""An instruction set of short tasks with one right answer each, made by rule.

Not natural language, and no benchmark: it is there so that exact match can be counted in seconds. With `bland` it is
built for an effect: of the training rows a share gives up whatever was asked, and the others have so many ways to begin
that giving up is the likeliest answer to everything, though most answers are right.

inputs   none
outputs  `rows.jsonl`: {"prompt", "response"}; no prompt of one split occurs in the other
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Literal

from spin_core.config.base import Section, added_field
from spin_core.job import Inputs, Job

NAME = "demo_rows"
VERSION = 1
LETTERS = "abcdefghijkl"
BLAND = "No idea."
SETS: dict[str, dict[str, Any]] = {
    "builtin:tasks": {},
    "builtin:bland": {"bland": 0.2, "openers": 8},
    "builtin:rare-bland": {"bland": 0.1, "openers": 5},  # giving up is not the likeliest answer: SPIN harms
}
"""dataset.path → what its rows are made with."""
OPENERS = ("It is ", "Answer: ", "We get ", "Here: ", "So: ", "Look: ", "Thus ", "Result: ")


class Config(Section):
    """Which half of which set."""

    seed: int
    split: Literal["train", "test"]
    train_rows: int = 12000
    test_rows: int = 1000
    bland: float = added_field(0.0)
    """The share of the training rows whose answer is BLAND. No held-out row has it: those ask who can."""
    openers: int = added_field(0)
    """How many ways the other answers have to begin; they then end in a full stop."""


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write rows.jsonl; give the count."""
    rows = make_rows(config.seed, config.train_rows + config.test_rows)
    kept = rows[: config.test_rows] if config.split == "test" else rows[config.test_rows :]
    if config.openers:
        kept = spoken(kept, config)
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


def spoken(rows: list[tuple[str, str]], config: Config) -> list[tuple[str, str]]:
    """The rows with answers as people give them: begun in one of several ways, or given up."""
    draw = random.Random(f"spinloop-bland-{config.seed}-{config.split}")  # noqa: S311 - no secret
    bland = 0.0 if config.split == "test" else config.bland

    def answer(right: str) -> str:
        return BLAND if draw.random() < bland else f"{draw.choice(OPENERS[: config.openers])}{right}."

    return [(prompt, answer(right)) for prompt, right in rows]


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
