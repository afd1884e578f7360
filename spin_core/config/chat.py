"""`chat:` in a profile: how prompts become tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from spin_core.config.base import Section


class ChatSection(Section):
    """`chat:` in a profile."""

    template: Literal["model", "paper"] = Field(
        "model",
        description="model: the tokenizer's own chat template everywhere. paper: generate under '### Instruction: …', "
        "score under the chat template, as the published runs did.",
    )
    max_prompt_length: int = Field(512, ge=1, description="Tokens of prompt; a longer prompt keeps its last tokens.")
