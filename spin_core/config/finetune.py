"""`finetune:` in a profile; and those of its settings that change a log-prob, in the keys of score and evaluate too."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from spin_core.config.base import Section, added_field
from spin_core.config.chat import ChatSection
from spin_core.config.choices import Collation, Loss, Optimizer, Precision, Quantize


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

    loss: Loss = Field("sigmoid", description="sigmoid: −log σ(z); hinge: max(0, 1 − z).")
    beta: float = Field(0.1, gt=0, description="λ of the paper: weight of the log-ratio in the loss.")
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
