"""The settings that change a log-prob: taken from `finetune:`, in the keys of score, finetune and evaluate."""

from __future__ import annotations

from pydantic import Field

from spin_core.config.base import Section
from spin_core.config.chat import ChatSection
from spin_core.config.choices import Collation, Precision, Quantize
from spin_core.config.finetune import Finetune


class Score(Section):
    """Taken from `finetune:`; the settings that change a log-prob."""

    max_length: int
    precision: Precision
    collation: Collation
    quantize: Quantize = Field("none", json_schema_extra={"omit_default": True})
    """Of `finetune.lora`: the policy's log-ratio must begin at 0, so its opponent is quantised as it is."""
    engine_logps: bool = Field(False, json_schema_extra={"omit_default": True})


def score_settings(part: Finetune) -> Score:
    """How the opponent's log-probs of this finetune are computed: as the policy's own."""
    quantize = part.lora.quantize if part.lora else "none"
    return Score(
        max_length=part.max_length,
        precision=part.precision,
        collation=part.collation,
        quantize=quantize,
        engine_logps=part.engine_logps,
    )


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
