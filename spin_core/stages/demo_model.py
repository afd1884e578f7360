"""An untrained Llama of about 0.1 million parameters with a character tokenizer and a chat template.

Not a model of anything: it knows nothing until `sft`. Small, so that each of the demo's trainings takes a minute or so.

inputs   none
outputs  a Hugging Face model directory (safetensors, tokenizer, chat template)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from spin_core.config.base import Section
from spin_core.job import Inputs, Job

NAME = "demo_model"
VERSION = 1
SPECIAL = ["<pad>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
CHARACTERS = [chr(code) for code in range(32, 127)]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Config(Section):
    """The model's shape."""

    seed: int
    hidden: int = Field(64, description="Width; the feed-forward layer is twice as wide.")
    layers: int = 2
    heads: int = 2  # of 32 each: the smallest that vLLM's CPU attention takes
    context: int = 128


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write the model directory; give its size."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    shape, words = write_settings(config, job.out)
    ends: dict[str, Any] = {"pad_token_id": shape.pad_token_id, "eos_token_id": shape.eos_token_id}
    torch.manual_seed(config.seed)
    model: Any = LlamaForCausalLM(shape)  # type: ignore[no-untyped-call]
    model.float().generation_config = GenerationConfig(**ends)  # type: ignore[no-untyped-call]
    model.save_pretrained(job.out)
    return {"parameters": model.num_parameters(), "vocabulary": words}


def write_settings(config: Config, out: Path) -> tuple[Any, int]:
    """Write what there is beside the weights, tokenizer and config.json; the model's config, and how many tokens there
    are."""
    from transformers import LlamaConfig

    tokenizer = _tokenizer(config.context)
    tokenizer.save_pretrained(out)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=config.context, hidden_size=config.hidden,
        intermediate_size=2 * config.hidden, num_hidden_layers=config.layers, num_attention_heads=config.heads,
        num_key_value_heads=config.heads, tie_word_embeddings=True, initializer_range=0.05, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    shape.save_pretrained(out)
    return shape, len(tokenizer)


def _tokenizer(context: int) -> Any:
    """One token a character: byte-pair encoding without merges."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.decoder = decoders.Fuse()
    tokenizer: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, pad_token="<pad>", eos_token="<|end|>", additional_special_tokens=SPECIAL[1:4],
        model_max_length=context, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    return tokenizer
