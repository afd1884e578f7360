"""`evaluate:` in a profile: what is measured on held-out rows."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from spin_core.config.base import Section, added_field
from spin_core.config.right_answer import RULE, checked_rule


class Evaluate(Section):
    """`evaluate:` in a profile."""

    exact_match: str = Field(
        "",
        description=f"{RULE} Empty: no exact match.",
    )
    answers: bool = Field(
        True, description="Answer the held-out prompts: for exact match, length, repetition, and to read them."
    )
    sampled: bool = Field(True, description="An answer drawn at temperature 1 beside the greedy one.")
    temperatures: list[float] = added_field(
        default_factory=list,
        description="Further temperatures to answer at, such as [0.3, 0.7]; greedy and 1 are there without.",
    )
    deployed: bool = added_field(
        True,
        description="Also answer as the model is deployed, where its generation_config.json has another temperature, "
        "top_p or top_k than these.",
    )
    max_new_tokens: int = Field(256, ge=1, description="Tokens of an answer to a held-out prompt.")

    @model_validator(mode="after")
    def _has_what_it_judges(self) -> Evaluate:
        if self.exact_match and not self.answers:
            raise ValueError("exact_match needs answers: true")
        return self

    @field_validator("temperatures")
    @classmethod
    def _new_ones(cls, value: list[float]) -> list[float]:
        for one in value:
            if not 0 <= one <= 10:
                raise ValueError("a temperature lies between 0 and 10")
        return sorted({*value} - {0.0, 1.0})

    @field_validator("exact_match")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        return checked_rule(value)
