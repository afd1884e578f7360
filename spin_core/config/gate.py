"""`gate:` in a profile: which model is best, and when to stop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spin_core.config.base import Section, added_field
from spin_core.config.choices import GateMetric, Reaction


class Gate(Section):
    """`gate:` in a profile."""

    metric: Literal["auto", GateMetric] = Field(
        "auto",
        description="What `best` goes by; auto: the first of harness, exact match and NLL that was measured on all "
        "models. repetition/greedy: the share of their 4-grams that greedy answers repeat.",
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
