"""`gather:` in a profile: which answers become pairs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spin_core.config.base import Section


class Gather(Section):
    """`gather:` in a profile."""

    truncated: Literal["keep", "drop", "report"] = Field(
        "keep",
        description="Answers cut at max_new_tokens. keep: they are pairs, scored without an end, as sampled. drop: no "
        "pairs, so the model never learns against its own long answers. report: keep them, and list them in "
        "truncated.jsonl, to see whether max_new_tokens is too low.",
    )
