"""The losses of `finetune.loss` that are not SPIN's own: the settings of each, as sections of `finetune:`.

Formulas, sources and what is verified: docs/objectives.md.
"""

from __future__ import annotations

from pydantic import Field

from spin_core.config.base import Section
from spin_core.config.choices import Loss

REWARDS: dict[Loss, str] = {
    "unpaired": "a times the log-ratio to the opponent",
    "tspin": "α times the log-prob, or with reference_free: false the log-ratio to the opponent",
    "tpaw": "β times the log-ratio to each player, as the players weigh",
    "alpha": "β times the log-ratio to the mixture of opponent and θ_0",
    "dft": "log-probs, with reference_free per token; of the generated answers their mean",
}
"""What `rewards/…` of training are, by loss; SPIN's own are β times the log-ratio to the opponent."""


class Unpaired(Section):
    """`finetune.unpaired:` in a profile. Real and generated answer each have a term of their own (SPACE, GSIL)."""

    a: float = Field(1.0, gt=0, description="Weight of a log-ratio in its term (SPACE: 1, GSIL: 0.01).")
    b: float = Field(0.0, description="Added to it (SPACE: −ln μ, GSIL: 2). 0: an unchanged answer is at σ = 1/2.")
    w: float = Field(1.0, gt=0, description="Weight of the generated answers' term (SPACE: μ).")


class Tspin(Section):
    """`finetune.tspin:` in a profile. Real over generated answer, and that over the answer of θ_0 to the prompt."""

    alpha: float = Field(1.0, gt=0, description="Weight of a log-prob in both terms.")
    beta: float = Field(
        0.1,
        ge=0,
        description="Weight of the second term, from iteration 1 on (θ_0's answers are the pairs of iteration 0); 0: "
        "the second term is left out, and with it θ_0's answers.",
    )
    reference_free: bool = Field(
        True, description="true: log-probs of the trained model alone, so nothing is scored; false: log-ratios to θ_t."
    )


class Tpaw(Section):
    """`finetune.tpaw:` in a profile. Several of the last models are players; `finetune.beta` is the λ of the paper."""

    players: int = Field(3, ge=1, description="How many of the last models, θ_t among them (as many as there are).")
    lift: float = Field(
        6.0, gt=0, description="Weight of a real answer that is no likelier than under the player (otherwise 1)."
    )
    sharpness: float = Field(
        0.5, ge=0, description="Players weigh softmax(−sharpness·margin): how much the one that is beaten least counts."
    )


class Alpha(Section):
    """`finetune.alpha:` in a profile. The opponent is a geometric mixture of θ_t and θ_0."""

    base_share: float = Field(
        0.5, ge=0, le=1, description="Share of θ_0 in the opponent's log-prob; 0: SPIN, 1: the opponent is θ_0."
    )


class Dft(Section):
    """`finetune.dft:` in a profile. The real answer against all generated ones of its prompt at once."""

    tau: float | None = Field(
        None, gt=0, description="Temperature of the generated answers; left out: 1, with reference_free 0.3."
    )
    gamma: float = Field(
        0.85,
        gt=0,
        le=1,
        description="Weight of this prompt's answers in its normaliser, whose rest is 1, so that answers that became "
        "unlikely are let go; 1: these answers alone, and the loss has no floor.",
    )
    reference_free: bool = Field(
        False, description="true: mean log-probs per token of the trained model alone, so nothing is scored."
    )
