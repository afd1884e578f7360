"""`generate:` in a profile: how the opponent answers the prompts."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from spin_core.config.base import Section, added_field
from spin_core.config.choices import EngineName


class Generate(Section):
    """`generate:` in a profile."""

    engine: EngineName = Field(
        "transformers", description="What samples the answers; vllm has an interpreter of its own (`make vllm-env`)."
    )
    temperature: float = Field(1.0, ge=0, le=10, description="0 is greedy decoding.")
    top_p: float = Field(
        1.0, gt=0, le=1, description="Nucleus sampling: the smallest set of tokens with this probability."
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
    logprobs: bool = added_field(
        False, description="Keep the log-prob of each sampled token; finetune.engine_logps can use them."
    )

    @field_validator("stop")
    @classmethod
    def _no_empty_string(cls, value: list[str]) -> list[str]:
        if "" in value:
            raise ValueError("an empty string would end every answer at once; give text, such as ['\\n\\n']")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Generate:
        if self.attempts > 1 and self.temperature == 0:
            raise ValueError("attempts above 1 need a temperature above 0: greedy decoding gives the same answer again")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError("min_new_tokens must not be above max_new_tokens")
        if self.min_new_tokens and self.stop:
            # vLLM forgets a stop string inside the minimum, the transformers engine does not: no meaning both share.
            raise ValueError("min_new_tokens and stop cannot be combined; leave one of them out")
        return self
