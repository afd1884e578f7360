"""`sweep:` in a profile: the settings that its variants differ in, and how often each variant is trained.

Is not: the runs (`flows/sweep.py`), nor a search. Every combination is run, and none is left out for what another gave.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from spin_core.config.base import Section

MOST = 200
"""Runs of one sweep: a day of the demo. Ten values of three settings are a mistake sooner than a plan."""
OUTSIDE = {
    "name": "is a label and changes no result",
    "sweep": "cannot be swept over",
    "runtime": "says how the machine is used and changes no result",
    "seed": "also changes which rows are held out, so that variants have no rows in common; take sweep.seeds (--seeds) "
    "or finetune.seed",
}


class Sweep(Section):
    """What `spinloop sweep` runs."""

    over: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="Setting → its values, such as {finetune.beta: [0.05, 0.1, 0.5]}; each combination is a variant.",
    )
    seeds: int = Field(
        1,
        ge=1,
        le=20,
        description="Trainings of each variant, which differ in finetune.seed: the first has the run's own seed.",
    )

    @field_validator("over")
    @classmethod
    def _axes(cls, over: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in over.items():
            first = name.split(".")[0]
            if first in OUTSIDE:
                raise ValueError(f"{name} {OUTSIDE[first]}")
            if not values:
                raise ValueError(f"{name} has no values; give some, such as {name}: [A, B]")
            if twice := [value for i, value in enumerate(values) if value in values[:i]]:
                raise ValueError(f"{name} has {twice[0]!r} twice")
        return over

    @property
    def runs(self) -> int:
        """Combinations times seeds."""
        count = self.seeds
        for values in self.over.values():
            count *= len(values)
        return count
