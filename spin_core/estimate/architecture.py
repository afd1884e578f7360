"""The sizes of a decoder, from its config.json or from a list of known ones, and how many weights that makes.

Is not: a loader, and no guess. Dense decoders with a gated MLP (Llama, Mistral, Qwen, Gemma, Phi 3, …) are known; of
others (mixtures of experts, GPT-2) nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.config import yaml_reader

KNOWN = Path(__file__).with_name("architectures.yaml")
DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Architecture:
    """Widths in numbers of features. `bytes_on_disk`: of one weight in its safetensors."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    bytes_on_disk: int = 2

    @property
    def queries(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of the keys of all heads; that of the values too."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each linear map of a layer."""
        h, q, k, i = self.hidden, self.queries, self.keys, self.intermediate
        return (h, q), (h, k), (h, k), (q, h), (h, i), (h, i), (i, h)

    @property
    def layer(self) -> int:
        """Weights of one layer, its two norms among them."""
        return sum(wide * high for wide, high in self.linears) + 2 * self.hidden

    @property
    def embeddings(self) -> int:
        """Weights of the embeddings, which are the output layer's too where the two are tied."""
        return self.vocab * self.hidden

    @property
    def weights(self) -> int:
        """Of the model."""
        return self.layers * self.layer + self.hidden + self.embeddings * (1 if self.tied else 2)

    @property
    def matrices(self) -> int:
        """Weights that every token is multiplied with: the layers' linear maps. (The output layer is for labels.)"""
        return self.layers * sum(wide * high for wide, high in self.linears)

    def adapter(self, rank: int) -> int:
        """Weights of a LoRA of this rank in every linear map of the layers."""
        return self.layers * rank * sum(wide + high for wide, high in self.linears)


def from_config(config: Mapping[str, Any]) -> Architecture | str:
    """The sizes that a model's config.json names, or why it is none that is known here."""
    config = {**config, **(config.get("text_config") or {})}
    if experts := next(
        (name for name in ("num_local_experts", "num_experts", "n_routed_experts") if config.get(name)), ""
    ):
        return f"is a mixture of experts ({experts})"
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    if missing := [name for name in names if not isinstance(config.get(name), int) or config[name] < 1]:
        return f"has no {missing[0]} in its config.json"
    layers, hidden, heads, intermediate, vocab = (config[name] for name in names)
    return Architecture(
        layers=layers, hidden=hidden, heads=heads, kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads, intermediate=intermediate, vocab=vocab,
        tied=bool(config.get("tie_word_embeddings", False)),
        bytes_on_disk=DTYPES.get(str(config.get("dtype") or config.get("torch_dtype") or "float32"), 4),
    )  # fmt: skip


def of_folder(folder: Path) -> Architecture | str:
    """As `from_config`, of the model directory."""
    try:
        content = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"has no readable config.json ({type(error).__name__})"
    return from_config(content) if isinstance(content, dict) else "has no JSON object as its config.json"


def of_known(hub_id: str) -> Architecture | None:
    """The sizes of a published model, which need not be here; None for one that the list lacks."""
    listed = yaml_reader.read_file(KNOWN)
    same: Mapping[str, str] = listed["same_as"]
    sizes = listed["models"].get(same.get(hub_id, hub_id))
    if sizes is None:
        return None
    layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, tied = sizes
    return Architecture(layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, bool(tied))
