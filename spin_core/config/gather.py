"""`gather:` in a profile: which answers become pairs."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from spin_core.config.base import Section, added_field
from spin_core.config.choices import Pick, Truncated
from spin_core.config.right_answer import RULE, checked_rule


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
    verifier: str = added_field(
        "",
        description="With pick: hardest: the hardest of the wrong answers; a right one only where a prompt has no "
        f"wrong one. By the right answer that the row's real answer declares. {RULE} A row in whose real answer it "
        "finds none is picked from without it. Empty: none.",
    )

    @field_validator("verifier")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        return checked_rule(value)

    @model_validator(mode="after")
    def _verifier_is_used(self) -> Gather:
        if self.verifier and self.pick != "hardest":
            raise ValueError(f"verifier is not used by pick: {self.pick}; set pick: hardest, or leave verifier out")
        return self
