"""`sft:` and `control:` in a profile: supervised fine-tuning."""

from __future__ import annotations

from pydantic import Field

from spin_core.config.base import Section
from spin_core.config.choices import Optimizer, Precision


class Sft(Section):
    """`sft:` in a profile."""

    lr: float = Field(2e-5, gt=0, description="Peak learning rate.")
    epochs: float = Field(1.0, gt=0, description="Passes over the training rows.")
    global_batch: int = Field(64, ge=1, description="Rows in one optimiser step.")
    optimizer: Optimizer = Field("adamw", description="Optimiser.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    warmup_ratio: float = Field(
        0.1, ge=0, lt=1, description="Part of the schedule spent warming up; linear decay to 0 after it."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping by norm; 0 is none.")
    max_length: int = Field(1024, ge=2, description="Tokens of prompt and answer together.")
    precision: Precision = Field("float32", description="bfloat16: autocast, float32 weights and log-probs.")
