"""What in a model's JSON files makes transformers run code that is not its own."""

from __future__ import annotations

from typing import Any

# `auto_map`: Python files beside the model, or in another repository.
CODE = ("auto_map", "custom_generate", "trust_remote_code")
# `org/name` in one of these is a kernel that transformers fetches from the hub and runs, where `kernels` is installed.
KERNELS = (
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
)  # fmt: skip


def code_setting(content: Any) -> str:
    """The first key, at any depth, that makes code run; empty where none does."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            for key, value in one.items():
                if (key in CODE and value) or key == "auto_map" or (key in KERNELS and "/" in str(value)):
                    return str(key)
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return ""
