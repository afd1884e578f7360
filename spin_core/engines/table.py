"""The engines by the name that `generate.engine` has for them. A new one is its module and a line here (and its name in
the Literal of the setting; a test compares the two)."""

from __future__ import annotations

from spin_core.engines import Engine, transformers_engine, vllm_engine

ENGINES: dict[str, Engine] = {
    "transformers": transformers_engine,
    "vllm": vllm_engine,
}
