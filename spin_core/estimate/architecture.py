"""The sizes of a decoder, from its config.json (of a folder or the hub client's cache) or from a list of known ones,
and how many weights that makes.

Is not: a loader, no download, and no guess. Dense decoders with a gated MLP (Llama, Mistral, Qwen, Gemma, Phi 3, …) are
known; of others (mixtures of experts, GPT-2) nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.config import yaml_reader
from spin_core.stages import demo_model

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


def of_known(hub_id: str) -> Architecture | None:
    """The sizes of a published model, which need not be here; None for one that the list lacks."""
    listed = yaml_reader.read_file(KNOWN)
    same: Mapping[str, str] = listed["same_as"]
    sizes = listed["models"].get(same.get(hub_id, hub_id))
    if sizes is None:
        return None
    layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, tied = sizes
    return Architecture(layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, bool(tied))


def sizes(path: str, revision: str, base_dir: Path) -> Architecture | str:
    """The sizes of `model.path`, or in one sentence why there are none."""
    if path == "builtin:tiny-llama":
        shape = demo_model.Config(seed=0)
        vocab = len(demo_model.SPECIAL) + len(demo_model.CHARACTERS)
        head = shape.hidden // shape.heads
        return Architecture(
            shape.layers, shape.hidden, shape.heads, shape.heads, head, 2 * shape.hidden, vocab, True, 4
        )
    file = _in_folder(path, base_dir) or _in_cache(path, revision)
    if file is None:
        return of_known(path) or (
            f"No estimate: the sizes of the model {path} are not known here; give the path of a local copy as "
            "model.path."
        )
    try:
        content = json.loads(file.read_bytes())
        known = from_config(content) if isinstance(content, dict) else "has no JSON object as its config.json"
    except (OSError, ValueError, RecursionError) as error:
        known = f"has no readable config.json ({type(error).__name__})"
    return f"No estimate: the model {path} {known}." if isinstance(known, str) else known


def _in_folder(path: str, base_dir: Path) -> Path | None:
    """The config.json of a folder."""
    try:
        folder = Path(path).expanduser()
        files = (base_dir / folder / "config.json", folder / "config.json")
        return next((file for file in files if file.is_file()), None)
    except (OSError, RuntimeError):
        return None


def _in_cache(path: str, revision: str) -> Path | None:
    """The config.json of a hub id, in the hub client's cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(path, "config.json", revision=revision or None)
    except (HFValidationError, OSError):
        return None
    return Path(file) if isinstance(file, str) else None
