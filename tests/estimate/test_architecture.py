"""Sizes of models: from config.json, and of those that are not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spin_core.estimate.architecture import Architecture, from_config, of_known, sizes
from spin_core.job import Job
from spin_core.stages import demo_model

FACTS = {
    "alignment-handbook/zephyr-7b-sft-full": 7_241_732_096,
    "allenai/tulu-2-70b": 68_976_648_192,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
}
"""Weights as their model cards (and safetensors headers) have them."""


@pytest.mark.parametrize(("hub_id", "weights"), FACTS.items())
def test_known_models_have_their_published_number_of_weights(hub_id: str, weights: int) -> None:
    """Catches a wrong number in the list, heads that are not grouped, and an output layer that is counted twice."""
    result = of_known(hub_id)
    assert result is not None and result.weights == weights


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_the_model_that_the_config_makes(tied: bool) -> None:
    """Catches a formula that leaves out norms, or takes hidden/heads for the width of a head that the config names."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    result = from_config(json.loads(config.to_json_string()))
    assert isinstance(result, Architecture)
    assert result.weights == sum(weight.numel() for weight in model.parameters())


def test_adapter_has_the_weights_that_peft_makes() -> None:
    """Catches a LoRA that is counted on the attention alone, or on the output layer too."""
    from spin_core.config.finetune import Lora
    from spin_core.modeling.lora import add_adapter
    from tests.estimate.cases import NARROW
    from tests.estimate.measured import llama

    model = llama(NARROW).requires_grad_(False)
    add_adapter(model, Lora(rank=3), 0)
    assert NARROW.adapter(3) == sum(w.numel() for w in model.parameters() if w.requires_grad)


def test_builtin_model_is_estimated_as_it_is_made(tmp_path: Path) -> None:
    """Catches a demo model that grew, with a sheet of the old one."""
    (tmp_path / "out").mkdir()
    made = demo_model.run({}, demo_model.Config(seed=0), Job(out=tmp_path / "out", scratch=tmp_path))
    result = sizes("builtin:tiny-llama", "", tmp_path)
    assert isinstance(result, Architecture) and result.weights == made["parameters"]
    assert sizes(str(tmp_path / "out"), "", Path()) == result


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"n_embd": 768}, "num_hidden_layers"),
        ([], "JSON object"),
        ("{", "readable config.json"),
    ],
)
def test_model_that_is_not_known_is_one_sentence(tmp_path: Path, content: object, message: str) -> None:
    """Catches a traceback, and numbers for a model whose sizes mean something else."""
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "config.json").write_text(text)
    result = sizes(str(tmp_path), "", tmp_path)
    assert isinstance(result, str) and result.startswith("No estimate: ") and message in result
    assert "no/such-model" in str(sizes("no/such-model", "", tmp_path))
