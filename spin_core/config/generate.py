"""`generate:` in a profile: how the opponent answers the prompts.

What the decoder does. At its start an iteration's gradient is β/2 times that of the real answers minus that
of the opponent's (paper, eq. 4.7 at θ = θ_t). *Sampled* at temperature 1, untruncated, the second part is 0 on average:
SPIN is then SFT with noise, and rests where SFT has converged. *Decoded* otherwise (greedy, a low temperature, a
nucleus) it is not: SPIN then fits the decoded model to the data, and takes back what decoding over-produces, loops and
bland answers, which SFT cannot see. Greedy opponents have no fixed point: after a few iterations the model swings back,
so the best one is kept (the gate does), and real answers always become somewhat less likely.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from spin_core.config.base import Section, added_field
from spin_core.config.choices import Decoder, EngineName


class Decoding(Section):
    """How a token is drawn, in numbers."""

    temperature: float = Field(1.0, ge=0, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)

    def __str__(self) -> str:
        if self.temperature == 0:
            return "greedy"
        cut = [f"top-p {self.top_p:g}"] * (self.top_p < 1) + [f"top-k {self.top_k}"] * (self.top_k > 0)
        return ", ".join([f"sampled at temperature {self.temperature:g}", *cut])

    @property
    def is_plain(self) -> bool:
        """Whether it draws from the model's own distribution."""
        return self == Decoding()


def _usual(data: dict[str, Any]) -> Decoder:
    return "greedy" if data.get("temperature") == 0 else "sampled"


class Generate(Section):
    """`generate:` in a profile."""

    engine: EngineName = Field(
        "transformers", description="What samples the answers; vllm has an interpreter of its own (`make vllm-env`)."
    )
    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy decoding.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus sampling: the smallest set of tokens with this probability."
    )
    top_k: int = added_field(0, ge=0, description="Draw of this many likeliest tokens only; 0: of all.")
    decoder: Decoder = added_field(
        default_factory=_usual,
        description="sampled: by temperature, top_p and top_k; at temperature 1 SPIN is close to SFT and rests where "
        "SFT does. greedy: the likeliest token each time; SPIN then takes back what decoding over-produces (loops, "
        "bland answers), and later iterations may swing back. deployed: as the model's generation_config.json says.",
    )
    max_new_tokens: int = Field(256, ge=1, description="Tokens of answer; a longer answer is cut and marked `length`.")
    min_new_tokens: int = added_field(0, ge=0, description="Tokens before which no answer ends.")
    stop: list[str] = added_field(
        default_factory=list,
        description="Strings that end an answer, which is cut before the first; it counts as finished.",
    )
    attempts: int = added_field(
        1,
        ge=1,
        le=100,
        description="Draws of an answer at most: an empty one is drawn again with another seed (temperature above 0).",
    )
    n: int = added_field(
        1,
        ge=1,
        le=64,
        description="Answers to each prompt, each drawn with a seed of its own (temperature above 0); `gather.pick` "
        "says which become pairs.",
    )
    logprobs: bool = added_field(
        False, description="Keep the log-prob of each sampled token; finetune.engine_logps can use them."
    )

    @model_validator(mode="before")
    @classmethod
    def _greedy_is_temperature_0(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("decoder") == "greedy" and "temperature" not in data:
            return {**data, "temperature": 0.0}
        return data

    @field_validator("stop")
    @classmethod
    def _no_empty_string(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty string would end every answer at once; give text, such as ['\\n\\n']")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Generate:
        if self.decoder == "greedy" and self.temperature:
            raise ValueError(
                f"decoder: greedy contradicts temperature: {self.temperature:g}; leave one of them out, or take "
                "decoder: sampled"
            )
        if self.decoder == "sampled" and self.temperature == 0:
            raise ValueError(
                "decoder: sampled contradicts temperature: 0, which is greedy; give a temperature above 0, or take "
                "decoder: greedy"
            )
        own = [name for name, usual in Decoding() if getattr(self, name) != usual]
        if self.decoder == "deployed" and own:
            raise ValueError(
                f"decoder: deployed contradicts {own[0]}: {getattr(self, own[0]):g}, as it takes that from the model; "
                f"leave {own[0]} out, or take decoder: sampled"
            )
        if self.attempts > 1 and self.temperature == 0:
            raise ValueError("attempts above 1 need a temperature above 0: greedy decoding gives the same answer again")
        if self.n > 1 and self.temperature == 0:
            raise ValueError("n above 1 needs a temperature above 0: greedy decoding gives the same answer each time")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens must not be above max_new_tokens")
        if self.min_new_tokens and self.stop:
            # vLLM forgets a stop string inside the minimum, the transformers engine does not: no meaning both share.
            raise ValueError("min_new_tokens and stop cannot be combined; leave one of them out")
        return self

    @property
    def decoding(self) -> Decoding:
        """How it draws, in numbers. What is `deployed` has none before `drawing_as`."""
        return Decoding(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    def drawing_as(self, deployed: Decoding | None) -> Generate:
        """The same in numbers alone, which keys are made of: a decoder that is `deployed` draws as the model is. Raises
        ValueError where the two contradict."""
        if self.decoder != "deployed" or deployed is None:
            return self
        fields = self.model_dump(exclude={"decoder"}, exclude_unset=True)
        return Generate.model_validate({**fields, **deployed.model_dump()})
