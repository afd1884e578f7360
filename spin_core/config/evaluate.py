"""`evaluate:` and `gate:` in a profile: what is measured on held-out rows, which model is best, and when to stop."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from spin_core.config.base import Section
from spin_core.config.choices import GateMetric, Reaction


class Evaluate(Section):
    """`evaluate:` in a profile."""

    exact_match: str = Field(
        "",
        description="'answer': the whole answer must equal the real one. A regular expression: its first group must be "
        "equal in both (GSM8K: '#### (.+)'). Empty: no exact match.",
    )
    answers: bool = Field(
        True, description="Answer the held-out prompts: for exact match, length, repetition, and to read them."
    )
    sampled: bool = Field(True, description="An answer drawn at temperature 1 beside the greedy one.")
    max_new_tokens: int = Field(256, ge=1, description="Tokens of an answer to a held-out prompt.")

    @model_validator(mode="after")
    def _has_what_it_judges(self) -> Evaluate:
        if self.exact_match and not self.answers:
            raise ValueError("exact_match needs answers: true")
        return self

    @field_validator("exact_match")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is not a regular expression ({error})") from None
        if value not in ("", "answer") and not groups:
            raise ValueError("needs a group, as in '#### (.+)', or the word answer")
        return value


class Gate(Section):
    """`gate:` in a profile."""

    metric: Literal["auto", GateMetric] = Field(
        "auto", description="What `best` goes by; auto: the first of these that was measured on all models."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of the intervals of a change.")
    resamples: int = Field(4000, ge=200, le=100_000, description="Bootstrap resamples of the held-out rows.")
    min_rows: int = Field(30, ge=2, description="Fewer held-out rows than this decide nothing.")
    fixed_point: Reaction = Field(
        "stop", description="After an iteration that neither tells real from generated answers nor moves the metric."
    )
    worse: Reaction = Field("go on", description="After a model that is clearly worse than the best.")
    alarm: Reaction = Field("go on", description="After signs of collapse, or of an accuracy that is saturated.")
