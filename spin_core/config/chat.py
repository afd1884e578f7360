"""`chat:` in a profile: how prompts become tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from spin_core.config.base import Section, added_field


class ChatSection(Section):
    """`chat:` in a profile."""

    template: Literal["model", "paper"] = Field(
        "model",
        description="model: the tokenizer's own chat template everywhere. paper: generate under '### Instruction: …', "
        "score under the chat template, as the published runs did.",
    )
    max_prompt_length: int = Field(
        512,
        ge=1,
        description="Tokens of prompt; a longer one loses its oldest turns, then the middle of its last one (with "
        "finetune.collation: reference its first tokens).",
    )
    template_kwargs: dict[str, Any] = added_field(
        default_factory=dict,
        description="Variables for the chat template, such as {enable_thinking: false}; the same for sampling and "
        "scoring.",
    )
    special_tokens: Literal["reject", "keep"] = added_field(
        "reject",
        description="Rows whose texts spell out a special token or the template's marks: reject them, or keep them, "
        "where they become real ones. An end of turn at the end of an answer is cut.",
    )
    rewritten: Literal["plain", "reject"] = added_field(
        "plain",
        description="Answers of which the template makes another text (it adds or drops reasoning): score them as "
        "prompt, answer, end of turn; or reject them.",
    )
