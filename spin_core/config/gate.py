"""`gate:` in a profile: which model is best, and when to stop."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from spin_core.config.base import Section, added_field
from spin_core.config.choices import Reaction

METRIC = re.compile(r"auto|harness|nll/real|(exact_match|repetition)/(greedy|sampled|deployed|t\d+(\.\d+)?)")


class Gate(Section):
    """`gate:` in a profile."""

    metric: str = Field(
        "auto",
        description="What `best` goes by: auto (the first of harness, exact match and NLL that was measured on all "
        "models), harness, nll/real, or, with a kind of answer behind it (greedy, sampled, deployed, or as t0.3 one of "
        "evaluate.temperatures), exact_match/ or repetition/ (the share of their 4-grams that these answers repeat): "
        "repetition/t0.3.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of the intervals of a change.")
    resamples: int = Field(4000, ge=200, le=100_000, description="Bootstrap resamples of the held-out rows.")
    min_rows: int = Field(30, ge=2, description="Fewer held-out rows than this decide nothing.")
    fixed_point: Reaction = Field(
        "stop", description="After an iteration that neither prefers real to generated answers nor moves the metric."
    )
    worse: Reaction = Field("go on", description="After a model that is clearly worse than the best.")
    alarm: Reaction = Field("go on", description="After signs of collapse, or of an accuracy that is saturated.")
    alarmed_best: bool = added_field(
        False, description="Let `best` move to a model that shows signs of a collapse, if its metric is clearly better."
    )

    @field_validator("metric")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if not METRIC.fullmatch(value):
            raise ValueError(
                f"{value!r} is none; take auto, harness, nll/real, or exact_match/ or repetition/ with a kind of "
                "answer behind it: greedy, sampled (temperature 1), deployed, or t0.3 (of evaluate.temperatures)"
            )
        figure, _, kind = value.partition("/")
        return f"{figure}/t{float(kind[1:]):g}" if re.fullmatch(r"t\d.*", kind) else value
