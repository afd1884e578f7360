"""Loading and saving Hugging Face causal language models and tokenizers (torch module).

Safetensors only, local files only, never remote code, never pickle. What it is *not*: no download (the hub is another
part's work), no quantised or adapter checkpoints.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from spin_core.config.chat import ChatSection
from spin_core.config.choices import Quantize
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput, StageFailed, one_line
from spin_core.modeling.chat import Chat
from spin_core.runtime import process_group
from spin_core.sources.folders import code_setting

transformers_logging.disable_progress_bar()

KEPT_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def pick_device(runtime: Runtime) -> torch.device:
    """`runtime.device` as torch's; auto is the first GPU where there is one, and of several processes of one node each
    has its own. Raises BadInput for an absent GPU."""
    if runtime.device == "auto":
        cpu = os.environ.get("ACCELERATE_USE_CPU") == "true"  # what the launcher of several processes decided
        device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
    else:
        try:
            device = torch.device(runtime.device)
        except RuntimeError:
            raise BadInput(
                f"runtime.device {runtime.device!r} is not a device; use auto, cpu, cuda or cuda:N"
            ) from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise BadInput(
            f"runtime.device {runtime.device!r}: this machine has {count} CUDA devices; use auto, cpu or one of them"
        )
    if device.type == "cuda" and device.index is None and process_group.world() > 1:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def apply_threads(runtime: Runtime) -> None:
    """Sets torch's CPU threads for this process; 0 leaves them."""
    if runtime.threads:
        torch.set_num_threads(runtime.threads)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `path`, right-padding, pad token = EOS where it has none (padding is masked, so which token
    does not matter).

    Raises BadInput where there is no tokenizer, chat template or EOS, where it has tokens that the model has not, or
    where it asks for code of its own.
    """
    content = _read_config(path)
    _refuse_own_code(path, "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises OSError, ValueError, KeyError or bare Exception, by file and format
        raise BadInput(
            f"{path}: no usable tokenizer ({one_line(error)}); save one there with save_pretrained"
        ) from error
    if not tokenizer.chat_template:
        raise BadInput(f"{path}: the tokenizer has no chat template; put a chat_template.jinja beside it")
    if tokenizer.eos_token_id is None:
        raise BadInput(f"{path}/tokenizer_config.json: no eos_token, so an answer could not end; set it")
    rows = (content.get("text_config") or content).get("vocab_size")
    highest = max(tokenizer.get_vocab().values())
    if isinstance(rows, int) and highest >= rows:
        raise BadInput(
            f"{path}/tokenizer.json: its highest token id is {highest:,} ({tokenizer.convert_ids_to_tokens(highest)}), "
            f"and config.json says that the model has {rows:,} tokens (vocab_size); resize the model's embeddings "
            "(resize_token_embeddings), or take the added tokens out"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_chat(path: Path, section: ChatSection) -> Chat:
    """The chat of the model in `path`: its tokenizer, and the tokens at which its generation_config stops."""
    stop = _refuse_own_code(path, "generation_config.json").get("eos_token_id")
    return Chat(load_tokenizer(path), section, str(path), stop)


def load_model(
    path: Path, device: torch.device | str, dtype: torch.dtype = torch.float32, train: bool = False,
    quantize: Quantize = "none",
) -> PreTrainedModel:  # fmt: skip
    """The model in `path` on `device`, dropout off, in train mode (gradients) or eval mode (none).

    `dtype` is that of the weights in memory: float32 master weights by default, whatever is on disk. Quantised, the
    linear layers have 4 bits, all else is bfloat16, and only an adapter can be trained: no weight asks for gradients.
    Raises BadInput where weights are missing, damaged, pickled, not finite, or do not fill the architecture, and for
    a quantisation that this machine cannot do.
    """
    how: dict[str, Any] = {"dtype": dtype} if quantize == "none" else _nf4(torch.device(device))
    how |= architecture(path)
    if (path / "adapter_config.json").is_file():  # with peft installed, transformers would load the base it names
        raise BadInput(
            f"{path}: this is an adapter (adapter_config.json); merge it into its model with peft's merge_and_unload, "
            "save that, and use its directory"
        )
    if not (path / "model.safetensors").is_file() and not (path / "model.safetensors.index.json").is_file():
        pickled = sorted(p.name for p in path.glob("*.bin")) + sorted(p.name for p in path.glob("*.pt*"))
        weights = f"only pickled weights ({pickled[0]})" if pickled else "no model.safetensors"
        raise BadInput(f"{path}: {weights}; convert the model to safetensors (save_pretrained) and use that directory")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, **how, trust_remote_code=False, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise BadInput(f"{path}: the model does not load ({one_line(error)}); check or download it again") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise BadInput(
            f"{path}: the safetensors lack {len(missing)} weights (first: {missing[0]}); download the model again"
        )
    no_dropout(model)
    model.requires_grad_(train and quantize == "none").train(train)
    model = model.to(device)
    _refuse_not_finite(model, path)
    return model


def _refuse_not_finite(model: PreTrainedModel, path: Path) -> None:
    """Raise BadInput, naming tensor and file, where a weight is NaN or infinite: one pass over the weights where they
    are, a second with more memory only for a tensor whose sum says so, and the files only to name one."""
    floats = (weight.detach() for weight in model.parameters() if weight.is_floating_point())
    if all(weight.sum(dtype=torch.float32).isfinite() or weight.isfinite().all() for weight in floats):
        return
    where = str(path)
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            spoilt = (key for key in weights.keys() if not weights.get_tensor(key).isfinite().all())  # noqa: SIM118
            if name := next(spoilt, ""):
                where = f"{file}: {name}"
                break
    raise BadInput(
        f"{where} has weights that are NaN or infinite, with which nothing can be sampled or trained; download the "
        "model again, or take an earlier one of the training that made it"
    )


def architecture(path: Path) -> dict[str, Any]:
    """Arguments for transformers to build the model in `path`. Raises BadInput where there is none, or one that
    brings code of its own."""
    # Gemma 2: transformers' SDPA silently leaves the cap out.
    return {"attn_implementation": "eager"} if _read_config(path).get("attn_logit_softcapping") else {}


def _nf4(device: torch.device) -> dict[str, Any]:
    """QLoRA's loading (arXiv 2305.14314): 4-bit NormalFloat, quantised constants, products in bfloat16."""
    if device.type != "cuda":
        raise BadInput(
            f"finetune.lora.quantize: nf4 runs on a CUDA GPU, not on {device.type}; use none, or another device"
        )
    if find_spec("bitsandbytes") is None:
        raise BadInput(
            "finetune.lora.quantize: nf4 needs the package bitsandbytes, which is not installed; "
            "`pip install bitsandbytes`, or use none"
        )
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"dtype": torch.bfloat16, "quantization_config": how, "device_map": {"": device}}


def use_liger(model: PreTrainedModel) -> None:
    """Puts Liger's Triton kernels (norms, rotary, MLP; not its losses) into `model`. Raises BadInput where they cannot
    run."""
    if find_spec("liger_kernel") is None:
        raise BadInput(
            "runtime.liger: the package liger-kernel is not installed; `pip install liger-kernel` or leave it off"
        )
    if model.device.type != "cuda":
        raise BadInput(f"runtime.liger: its kernels run on CUDA, not on {model.device.type}; leave it off")
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model.config.model_type not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise BadInput(f"runtime.liger: it has no kernels for {model.config.model_type}; leave it off")
    _apply_liger_kernel_to_instance(model=model, cross_entropy=False, fused_linear_cross_entropy=False)


def source_dtype(path: Path) -> torch.dtype:
    """The dtype of the weights on disk (that of the first floating tensor), which `save_model` keeps."""
    file = min(path.glob("*.safetensors"))
    with safe_open(file, "pt") as weights:
        names = (weights.get_slice(key).get_dtype() for key in weights.keys())  # noqa: SIM118 (not a dict)
        return next((DTYPES[name] for name in names if name in DTYPES), torch.float32)


def save_model(model: PreTrainedModel, source: Path, out: Path, weights: dict[str, Any] | None = None) -> None:
    """Writes `model` (trained from the one in `source`) to `out`: safetensors, in the dtype that `source` has on disk.
    `weights`, in that dtype: those of a sharded model.

    Config, tokenizer, chat template and generation config are `source`'s own files, byte for byte, so that nothing but
    the weights changes between iterations and no path, host or library version gets into the bytes. The one exception
    is config.json, from which `_name_or_path` is taken out. A bfloat16 source is trained on float32 weights and
    rounded here, once: near 0.02 its grid is 1.2e-4 wide, which RMSprop at lr 5e-7 crosses in no fewer than 240 steps.
    To keep every bit of small updates between iterations, start from a float32 model.
    `model` itself is cast. Raises StageFailed when the disk is full.
    """
    try:
        if weights is None:
            model.to(dtype=source_dtype(source)).save_pretrained(out)  # type: ignore[call-overload,call-arg]
        else:
            model.save_pretrained(out, state_dict=weights)
        for name in KEPT_FILES:
            (out / name).unlink(missing_ok=True)
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
        config = {key: value for key, value in _read_config(source).items() if key != "_name_or_path"}
        (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise StageFailed(
            f"the trained model could not be written to {out} ({error}); free disk space and run again"
        ) from error


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise BadInput(f"{path}: no config.json, so this is not a Hugging Face model directory; name one that has it")
    return _refuse_own_code(path, "config.json")


def _refuse_own_code(path: Path, name: str) -> dict[str, Any]:
    """The JSON file's content ({} where there is none); BadInput where it names Python code to run."""
    try:
        content = json.loads((path / name).read_text(encoding="utf-8")) if (path / name).is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path / name}: not readable as JSON ({one_line(error)}); download the model again") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path / name}: not a JSON object; download the model again")
    if named := code_setting(content):
        raise BadInput(
            f"{path / name}: `{named}` asks to run the model's own code; use a model that transformers knows by itself"
        )
    return content


def no_dropout(model: PreTrainedModel) -> None:
    """Takes dropout out of `model`: SPIN compares log-probs, so these must be deterministic. Some layers hold the rate
    as a number; routers of experts hold that of their noise so."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if ("dropout" in name or "jitter_noise" in name) and isinstance(value, float):
                setattr(module, name, 0.0)
