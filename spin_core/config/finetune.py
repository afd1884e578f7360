"""`finetune:` in a profile; and those of its settings that change a log-prob, in the keys of score and evaluate too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from spin_core.config.base import Section, added_field
from spin_core.config.chat import ChatSection
from spin_core.config.choices import Collation, Loss, Optimizer, Order, Precision, Quantize
from spin_core.config.objectives import Alpha, Dft, Tpaw, Tspin, Unpaired

WEIGHED: dict[Loss, str] = {"unpaired": "unpaired.a", "tspin": "tspin.alpha", "dft": "dft.tau"}
"""Losses that do not use `beta`, and what they have for it."""
SECTIONS = ("unpaired", "tspin", "tpaw", "alpha", "dft")
"""Of `finetune:`, each used by the loss of its name."""


class Lora(Section):
    """`finetune.lora:` in a profile. It has no dropout: SPIN compares log-probs, which must be those of one model."""

    rank: int = Field(
        16,
        ge=1,
        description="Setting any of these trains an adapter B·A of this rank per layer, not all weights, and merges "
        "it; it wants a far larger lr, such as 1e-4. A bfloat16 model is saved as bfloat16, which rounds small updates "
        "off: start from float32 to keep them.",
    )
    alpha: int = Field(16, ge=1, description="The update is alpha/rank times B·A.")
    target_modules: Literal["all-linear"] | list[str] = Field(
        "all-linear", description="Layers that get an adapter: all-linear (but the output layer), or names of layers."
    )
    quantize: Quantize = Field(
        "none",
        description="nf4 (QLoRA): train and score on θ_t in 4 bit; needs CUDA and bitsandbytes. The adapter is merged "
        "into the unquantised θ_t, with which the next answers are generated.",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        if value == "all-linear":
            return value
        if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
            raise ValueError("give all-linear or a list of layers' names, such as [q_proj, v_proj]")
        return sorted(set(value))


class Finetune(Section):
    """`finetune:` in a profile."""

    loss: Loss = Field(
        "sigmoid",
        description="SPIN's: sigmoid: −log σ(z); hinge: max(0, 1 − z). Others on the same pairs (docs/objectives.md): "
        "unpaired, tspin, tpaw, alpha, dft, each with a section of its name.",
    )
    beta: float = Field(
        0.1, gt=0, description="λ of the paper: weight of the log-ratio in the loss (sigmoid, hinge, tpaw, alpha)."
    )
    length_normalised: bool = added_field(
        False, description="Divide each log-ratio by its answer's tokens before beta (which then has to be larger)."
    )
    sft_weight: float = added_field(
        0.0, ge=0, description="Adds this times the real answers' NLL per token to the loss, against collapse (RPO: 1)."
    )
    lr: float = Field(5e-7, gt=0, description="Peak learning rate.")
    optimizer: Optimizer = Field("rmsprop", description="Optimiser (torch defaults; the paper: RMSprop).")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Part of the schedule spent warming up; linear decay to 0 after it."
    )
    schedule_epochs: float = Field(2.0, gt=0, description="Epochs that the learning-rate schedule is laid out for.")
    stop_epoch: float = Field(
        0.0,
        ge=0,
        description="Epochs after which training stops; 0 is the whole schedule. (Published: 6, stopped at 2.)",
    )
    global_batch: int = Field(64, ge=1, description="Pairs in one optimiser step.")
    order: Order = added_field(
        "pairs",
        description="What is drawn in random order. prompts: the pairs of one prompt and real answer (of several "
        "iterations, or of `generate.n` answers) together, computed with prompt and real answer once; the loss of each "
        "pair is the same, a step has about `global_batch` pairs.",
    )
    seed: int | None = added_field(
        None, ge=0, description="Seed of this training's order (and of a new adapter); leave out for the run's seed."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping by norm; 0 is none.")
    max_length: int = Field(1024, ge=2, description="Tokens of prompt and answer together.")
    precision: Precision = Field("float32", description="bfloat16: autocast; weights, log-probs and loss stay float32.")
    collation: Collation = Field(
        "exact",
        description="exact: what was sampled is scored. reference: the published code's tokenisation, masks and cuts.",
    )
    lora: Lora | None = added_field(
        None, description="Train a low-rank adapter and merge it into the model; leave out to train all weights."
    )

    engine_logps: bool = added_field(
        False,
        description="Take the opponent's log-probs of its own answers as the engine found them while it sampled "
        "(`generate.logprobs: true`), where a sample agrees with score's own; float32 and exact collation only.",
    )

    unpaired: Unpaired = added_field(Unpaired(), description="Settings of loss unpaired (SPACE, GSIL).")
    tspin: Tspin = added_field(Tspin(), description="Settings of loss tspin (T-SPIN).")
    tpaw: Tpaw = added_field(Tpaw(), description="Settings of loss tpaw (TPAW).")
    alpha: Alpha = added_field(Alpha(), description="Settings of loss alpha (α-SPIN).")
    dft: Dft = added_field(Dft(), description="Settings of loss dft (DFT).")

    @property
    def reference_free(self) -> bool:
        """Whether the loss is made of the trained model's log-probs alone."""
        return (self.loss == "tspin" and self.tspin.reference_free) or (self.loss == "dft" and self.dft.reference_free)

    @property
    def rewards_logps(self) -> bool:
        """Whether the training's rewards are log-probs: below 0 from its beginning, as no opponent is taken off."""
        return self.loss == "dft" or self.reference_free

    @property
    def wants_first(self) -> bool:
        """Whether the loss reads the answers of θ_0, from iteration 1 on."""
        return self.loss == "tspin" and self.tspin.beta > 0

    @property
    def per_token(self) -> bool:
        """Whether log-probs are divided by their answer's tokens before all else."""
        return self.length_normalised or (self.loss == "dft" and self.dft.reference_free)

    @property
    def ratio_weight(self) -> float:
        """What a log-ratio to the opponent is multiplied by in the loss, and so in the rewards."""
        return {"unpaired": self.unpaired.a, "tspin": self.tspin.alpha, "dft": 1.0}.get(self.loss, self.beta)

    @model_validator(mode="after")
    def _only_what_the_loss_uses(self) -> Finetune:
        defaults = type(self).model_fields
        if self.loss in WEIGHED and self.beta != defaults["beta"].default:
            raise ValueError(
                f"beta is not used by loss {self.loss}, which has {WEIGHED[self.loss]}; leave beta out "
                "(--set finetune.beta= takes it out)"
            )
        for name in SECTIONS:
            if name != self.loss and getattr(self, name) != defaults[name].default:
                raise ValueError(
                    f"{name} is not used by loss {self.loss}; leave it out (--set finetune.{name}= does), or set "
                    f"loss: {name}"
                )
        if self.length_normalised and self.loss == "dft":
            raise ValueError(
                "length_normalised is not used by loss dft, which weighs whole answers, or with dft.reference_free "
                "tokens; leave it out"
            )
        if self.engine_logps and self.reference_free:
            raise ValueError(
                f"engine_logps is not used by loss {self.loss} with reference_free, which scores nothing; leave it out"
            )
        if self.order == "prompts" and self.loss == "dft":
            raise ValueError(
                "order: prompts is not used by loss dft, which reads all answers to a prompt together anyway; leave "
                "order out"
            )
        if self.order == "prompts" and self.collation == "reference":
            raise ValueError(
                "order: prompts does not go with collation: reference, which draws single pairs and cuts a prompt by "
                "the pair that it is in; set collation: exact or leave order out"
            )
        if self.collation == "reference" and (self.loss == "dft" or self.wants_first):
            raise ValueError(
                f"loss {self.loss} does not go with collation: reference, which cuts a prompt by the pair that it is "
                "in, while the loss reads several answers to one prompt; set collation: exact"
            )
        return self

    @model_validator(mode="after")
    def _nf4_computes_in_bfloat16(self) -> Finetune:
        if self.lora and self.lora.quantize == "nf4" and self.precision != "bfloat16":
            raise ValueError("lora.quantize nf4 computes in bfloat16; set precision: bfloat16")
        return self


class Score(Section):
    """The settings that change a log-prob: taken from `finetune:`, in the keys of score, finetune and evaluate."""

    max_length: int
    precision: Precision
    collation: Collation
    quantize: Quantize = added_field("none")
    """Of `finetune.lora`: the policy's log-ratio must begin at 0, so its opponent is quantised as it is."""
    engine_logps: bool = added_field(False)


def scored(part: Finetune, t: int, sets: Sequence[int], first: int) -> list[tuple[int, int]]:
    """Whose log-probs of which pairs iteration `t` trains with: (k of the θ_k, iteration of the pairs), model by model,
    θ_t before its predecessors, each over all of `sets`, the iterations whose pairs are trained on, and then over those
    of iteration 0, where the loss reads θ_0's answers. `first`: the iteration that the run begins with.

    finetune reads them in this order. dft weighs an answer against the model that it was sampled from.
    """
    if part.reference_free:
        return []
    if part.loss == "dft":
        return [(i, i) for i in sets]
    players = [t]
    if part.loss == "tpaw":
        players = list(range(t, max(first - 1, t - part.tpaw.players), -1))
    elif part.loss == "alpha" and t > 0 and part.alpha.base_share:
        players = [t, 0]
    every = [*sets, 0] if part.wants_first and t > 0 else sets
    return [(k, i) for k in players for i in every]


def own_first(scores: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What `scored` gave in the order in which it is computed: of each model its own pairs first, as the other sets'
    scores take the real answers' log-probs from there."""
    return sorted(scores, key=lambda one: one[0] != one[1])


def score_settings(part: Finetune) -> Score:
    """How the opponent's log-probs of this finetune are computed: as the policy's own."""
    shared = {name: getattr(part, name) for name in Score.model_fields if name != "quantize"}
    return Score(**shared, quantize=part.lora.quantize if part.lora else "none")


def engine_logps_unusable(settings: Score, chat: ChatSection) -> str:
    """Why no log-prob of an engine can stand for score's own under these settings; empty where it can."""
    if chat.template != "model":
        return f"under `chat.template: {chat.template}` the prompt that is scored is not the one that was sampled from"
    if settings.collation != "exact":
        return f"under `collation: {settings.collation}` the tokens that are scored are not those that were sampled"
    if settings.quantize != "none":
        return f"the engine's model is not quantised, and the opponent is (`lora.quantize: {settings.quantize}`)"
    if settings.precision != "float32":
        return (
            f"in {settings.precision} the rounding of two programs differs by more than an answer may; set `precision: "
            "float32`"
        )
    return ""
