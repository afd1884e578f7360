"""`start:` in a profile: a run that begins at a later iteration, or with pairs that are there already."""

from __future__ import annotations

from pydantic import Field

from spin_core.config.base import Section


class Start(Section):
    """`start:` in a profile: where a run begins that goes on from what was published, or from another run."""

    iteration: int = Field(
        0,
        ge=0,
        le=100,
        description="The first iteration that is run. From 1 on `model` is not θ_0 but the θ of this number, and it "
        "is imported into the store.",
    )
    pairs: dict[int, str] = Field(
        default_factory=dict,
        description="Iteration → its pairs, which are imported and not generated: a folder, a hub id (org/name, "
        "org/name/folder, with @revision), or the digest of an artifact of the store.",
    )
