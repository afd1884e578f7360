"""Models of a real shape with random weights, and token sequences of real lengths: what fits in no checkout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_data import GOLDEN
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from spin_core.modeling.collate import Tokens
from spin_core.modeling.packing import Group
from tests.gpu.proof import Proof

SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
"""SmolLM2-135M's."""
TINY: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


def small_model(proof: Proof, spread: float = 0.04) -> PreTrainedModel:
    """SmolLM2's shape, float32, in train mode on the device. `spread` of the weights: twice transformers' own makes
    attention sharp enough that a wrong mask is seen."""
    torch.manual_seed(7)
    how = {**(TINY if proof.tiny else SMOLLM2), "initializer_range": 0.2 if proof.tiny else spread}
    config = LlamaConfig(**how, bos_token_id=1, eos_token_id=2, pad_token_id=None, attn_implementation="sdpa")
    with torch.device(proof.device):
        return LlamaForCausalLM(config).float().train()


def saved(proof: Proof, dtype: torch.dtype, to: Path) -> Path:
    """A directory of that model in `dtype`, with the golden tokenizer, whose 512 tokens it has too."""
    small_model(proof, 0.02).to(dtype).save_pretrained(to)
    for file in (GOLDEN / "tokenizer").iterdir():
        if file.is_file():
            shutil.copyfile(file, to / file.name)
    return to


def groups(proof: Proof, count: int = 12) -> list[Group]:
    """Prompts of many lengths with two answers each, one with three, one with none of its own tokens."""
    draws, words = np.random.default_rng(3), (TINY if proof.tiny else SMOLLM2)["vocab_size"]
    longest = 12 if proof.tiny else 300

    def some(low: int, high: int) -> np.ndarray:
        return draws.integers(5, words, int(draws.integers(low, high)))

    made: list[Group] = []
    for number in range(3 if proof.tiny else count):
        prompt = some(2, longest)
        answers = [some(1, longest) for _ in range(3 if number == 1 else 2)]
        made.append([Tokens(np.r_[prompt, answer].astype(np.int32), len(prompt)) for answer in answers])
    alone = some(2, longest).astype(np.int32)
    return [*made, [Tokens(alone, 0)]]
