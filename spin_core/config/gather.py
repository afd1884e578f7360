"""`gather:` in a profile: which answers become pairs."""

from __future__ import annotations

from pydantic import Field

from spin_core.config.base import Section, added_field
from spin_core.config.choices import Pick, Truncated


class Gather(Section):
    """`gather:` in a profile."""

    truncated: Truncated = Field(
        "keep",
        description="Answers cut at max_new_tokens. keep: they are pairs, scored without an end, as sampled. drop: no "
        "pairs, so the model never learns against its own long answers. report: keep them, and list them in "
        "truncated.jsonl, to see whether max_new_tokens is too low.",
    )
    pick: Pick = added_field(
        "all",
        description="Of several answers to a row (`generate.n`). all: each is a pair. One of them: the first drawn; "
        "the hardest, whose mean log-prob of a token under the opponent is the highest (needs `generate.logprobs: "
        "true`); the shortest in tokens.",
    )
