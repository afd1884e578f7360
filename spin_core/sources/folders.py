"""Which files of a model, a checkpoint or a published pair set count, in a folder or in a hub repository; and that a
model is whole, is not quantised and makes no code run.

A pair set has parquet files named for their split, `train…` or `train_prefs…` and `test…` or `test_prefs…` (the
published SPIN_iter sets and spinloop's own). What only spinloop writes beside its weights or pairs is imported with
them, so that a tree of a store that was copied elsewhere comes back as the same content.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from spin_core.data.readers import split_of
from spin_core.errors import BadInput
from spin_core.sources import pointers

SETTINGS = ("*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja", "additional_chat_templates/*.jinja")
WEIGHTS = ("*.safetensors",)
METRICS = "metrics.jsonl"
WITH_WEIGHTS = (METRICS, "README.md")
QUALITY = "quality.json"
TOKENS = ("train_tokens.arrow", "test_tokens.arrow", "tokens.json")
WITH_PAIRS = (QUALITY, "truncated.jsonl", "engine_logps.jsonl", *TOKENS)
LONGEST_JSON = 64 << 20  # of a config or index; tokenizer.json is not read here
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# `auto_map`: Python files beside the model, or in another repository.
CODE = ("auto_map", "custom_generate", "trust_remote_code")
# `org/name` in one of these is a kernel that transformers fetches from the hub and runs, where `kernels` is installed.
KERNELS = (
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "_experts_implementation_internal",
)  # fmt: skip
QUANTISED = ("quantization_config", "compression_config", "quantization")
QUANTISED_BESIDE = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}
"""What AutoGPTQ, AutoAWQ and ModelOpt write beside a config.json that does not say it."""


def check_model(folder: Path, weights: bool = True) -> None:
    """Raise BadInput unless `folder` is a complete safetensors model that loads without running code of its own, and
    whose weights are plain.

    `weights` False leaves out the look at the weight files (they are not downloaded yet).
    """
    if not folder.is_dir():
        if folder.suffix.lower() == ".gguf":
            raise _gguf(str(folder))
        raise BadInput(f"Model {folder}: this is a file; give the directory that save_pretrained wrote.")
    for name in model_files(pointers.links(folder)):
        pointers.refuse_link(folder / name)
    if (folder / "adapter_config.json").is_file():
        raise BadInput(
            f"Model {folder}: this is an adapter, not a whole model; merge it into its base model (peft's "
            "merge_and_unload) and save that."
        )
    if not (folder / "config.json").is_file():
        if any(folder.glob("*.gguf")):
            raise _gguf(str(folder))
        raise BadInput(f"Model {folder}: there is no config.json; give the directory that save_pretrained wrote.")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if (folder / name).is_file() and (setting := code_setting(_json(folder / name))):
            raise BadInput(
                f"Model {folder}: its {name} has `{setting}`, so it needs code of its own, which is never run here; "
                f"use a model whose architecture transformers has, or take out `{setting}` if it does."
            )
    for name in ("config.json", *QUANTISED_BESIDE):
        if (folder / name).is_file() and (method := _quantised(name, _json(folder / name))):
            raise BadInput(
                f"Model {folder}: its {name} says that its weights are quantised ({method}), and such weights are not "
                "trained here; use the unquantised model that it was made from (`finetune.lora: {rank: 16, quantize: "
                "nf4}` quantises that while it trains), or correct the file if the weights are plain."
            )
    if not weights:
        return
    require_weights(str(folder), [path.name for path in folder.iterdir()])
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _json(index).get("weight_map")
        wanted = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
        outside = [name for name in wanted if Path(name).name != name or not name.endswith(".safetensors")]
        if outside:  # transformers would read it, and neither its content nor its kind would have been looked at
            raise BadInput(
                f"Model {folder}: {index.name} names {outside[0]!r}, which is no .safetensors file of this folder; "
                "copy the model again."
            )
        missing = [name for name in wanted if not (folder / name).is_file()]
        if missing:
            raise BadInput(f"Model {folder}: {missing[0]} is missing, which {index.name} names; copy the model again.")


def tokenizer_files(names: list[str]) -> list[str]:
    """Of a model's files those that its tokens depend on: tokenizer, chat template, and the settings that say how the
    tokenizer is loaded and where an answer ends."""
    return [name for name in model_files(names, SETTINGS) if not name.endswith(".index.json")]


def require_weights(where: str, names: list[str]) -> None:
    """Raise BadInput, naming `where`, unless there are weights among the names of a model's files."""
    if model_files(names, WEIGHTS):
        return
    if any(name.lower().endswith(".gguf") for name in names):
        raise _gguf(where)
    pickled = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PICKLED))
    if pickled:
        raise BadInput(
            f"Model {where}: its weights are pickled ({pickled[0]}), which can run code and is not read here; load "
            "them where you trust them and save with save_pretrained(safe_serialization=True)."
        )
    raise BadInput(f"Model {where}: there is no .safetensors file in it; give a directory with weights.")


def _gguf(where: str) -> BadInput:
    return BadInput(
        f"Model {where}: this is GGUF, llama.cpp's form of weights, mostly quantised, which is not trained here; give "
        "the model in safetensors that it was made from."
    )


def _quantised(name: str, content: dict[str, Any]) -> str:
    """How the weights of a model are quantised by what one of its files says, at any depth; empty where it says
    nothing."""
    if name in QUANTISED_BESIDE:
        method = content.get("quant_method") or QUANTISED_BESIDE[name]
        return f"quant_method {method}" if content else ""
    for part in _mappings(content):
        for key in QUANTISED:
            one = part.get(key)
            if isinstance(one, dict) and one and (key != "quantization" or "bits" in one):
                bits = any(one.get(flag) for flag in ("load_in_8bit", "load_in_4bit"))
                method = one.get("quant_method") or ("bitsandbytes" if bits else "")
                return f"{key}: quant_method {method}" if method else key
    return ""


def _json(file: Path) -> dict[str, Any]:
    try:
        pointers.refuse(file)
        if file.stat().st_size > LONGEST_JSON:
            raise BadInput(f"{file}: over {LONGEST_JSON >> 20} MiB is no model's; copy the model again.")
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file}: broken JSON ({error}); fix it or copy the model again.") from error
    if not isinstance(value, dict):
        raise BadInput(f"{file}: not a JSON object; fix it or copy the model again.")
    return value


def model_files(names: list[str], patterns: tuple[str, ...] = SETTINGS + WEIGHTS) -> list[str]:
    """The names that matter, at the top only: a checkpoint's sub-folders are other models or formats."""
    return sorted(n for n in names if any(fnmatch(n, p) and n.count("/") == p.count("/") for p in patterns))


def checkpoint_files(names: list[str]) -> list[str]:
    """As `model_files`, and of a model that spinloop trained its metrics and its card (which has the chain of training
    steps)."""
    own = [name for name in WITH_WEIGHTS if name in names] if METRICS in names else []
    return sorted({*model_files(names), *own})


def code_setting(content: Any) -> str:
    """The first key, at any depth, that makes code run; empty where none does."""
    for one in _mappings(content):
        for key, value in one.items():
            if (key in CODE and value) or key == "auto_map" or (key in KERNELS and "/" in str(value)):
                return str(key)
    return ""


def _mappings(content: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object in `content`, itself among them; without recursion, because the parser takes more depth than
    Python's stack."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def pair_files(names: Sequence[str], where: str) -> dict[str, list[str]]:
    """Split (train, test) → its parquet files, sorted. Raises BadInput, naming `where`, unless there are train pairs of
    exactly one configuration."""
    parquet = [PurePosixPath(name) for name in sorted(names) if name.endswith(".parquet") and "/." not in f"/{name}"]
    if not parquet:
        raise BadInput(f"{where}: there is no .parquet file in it; a pair set has train and test files of that kind.")
    files: dict[str, list[str]] = {"train": [], "test": []}
    for path in parquet:
        split = split_of(path).removesuffix("_prefs")
        if split not in files and len(parquet) == 1:
            split = "train"
        if split in files:
            files[split].append(str(path))
    if not files["train"]:
        raise BadInput(
            f"{where}: no parquet file is named for a split train or train_prefs (there is {parquet[0]}); name the "
            "folder that has the pairs."
        )
    folders = sorted({str(PurePosixPath(name).parent) for part in files.values() for name in part})
    if len(folders) > 1:
        raise BadInput(f"{where}: it has several pair sets; name one, say {where.partition('@')[0]}/{folders[0]}.")
    return files


def pair_names(names: Sequence[str], where: str) -> list[str]:
    """All files of a pair set: its parquet files, and what gather wrote beside them if it did. Raises BadInput as
    `pair_files`."""
    files = pair_files(names, where)
    parquet = files["train"] + files["test"]
    folder = PurePosixPath(parquet[0]).parent
    own = [str(folder / name) for name in WITH_PAIRS]
    return sorted(parquet + ([name for name in own if name in names] if str(folder / QUALITY) in names else []))
