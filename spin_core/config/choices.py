"""The named choices of a profile that more than one section or module takes: the values are written here only."""

from __future__ import annotations

from typing import Literal

Loss = Literal["sigmoid", "hinge", "unpaired", "tspin", "tpaw", "alpha", "dft"]
Precision = Literal["float32", "bfloat16"]
Optimizer = Literal["rmsprop", "adamw"]
Quantize = Literal["none", "nf4"]
Collation = Literal["exact", "reference"]
Order = Literal["pairs", "prompts"]
"""What training draws in random order: single pairs, or all pairs of a prompt and real answer together."""
Kernel = Literal["sdpa", "flex_attention", "flash_attention_2"]
"""Of packed attention."""
Turns = Literal["first", "last", "all"]
"""Which assistant turns of a conversation become rows."""
Truncated = Literal["keep", "drop", "report"]
"""What becomes of answers that were cut at max_new_tokens."""
Pick = Literal["all", "first", "hardest", "shortest"]
"""Which of several answers to a row become pairs."""
Finish = Literal["stop", "length"]
"""How an answer ended: by itself, or cut at max_new_tokens."""
EngineName = Literal["transformers", "vllm"]
Decoder = Literal["sampled", "greedy", "deployed"]
"""How the opponent's answers are drawn."""
HarnessBackend = Literal["hf", "vllm"]
Reaction = Literal["stop", "go on"]
"""What a run does after an iteration that the gate has something to say of."""
