"""Tiny models of many architectures: which are packed, and that each gives the log-probs and gradients of its own
logits either way."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from packing_data import WORDS, apart, gradients, padded, tokens
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.gptj import modeling_gptj

from spin_core.config.runtime import Runtime
from spin_core.modeling.loading import load_model, no_dropout
from spin_core.modeling.logprobs import Policy

COMMON = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": None,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {**COMMON, "head_dim": 8}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
MASKED = {
    **COMMON, **EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1,
}  # fmt: skip
FULL_HEADS = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}
GEMMA = {**HEADS, "sliding_window": 64, "query_pre_attn_scalar": 8}
LENGTH = 30
GROUPS = [
    [tokens(range(5, 25), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), tokens(range(5, 25), [9, 8, 7])],
    [tokens([7, 8, 9], [10, 11, 50, 51]), tokens([7, 8, 9], [40])],
]


class Kind(NamedTuple):
    """An architecture, its config, and why it is not packed (a regular expression; empty: it is)."""

    model_type: str
    config: dict[str, Any]
    padded: str = ""


WINDOW = "its sliding window of 16 is shorter than a sequence of 30"
OFF = r"its log-probs are off by [\d.]+ nats"
# Until transformers 5.22 its attention was in its own file alone, which saw nothing of the layout of packed pairs.
OLD_GPTJ = not hasattr(modeling_gptj, "ALL_ATTENTION_FUNCTIONS")
KINDS = {
    "llama": Kind("llama", COMMON),
    "llama tied": Kind("llama", {**COMMON, "tie_word_embeddings": True}),
    "mistral, window 64": Kind("mistral", {**COMMON, "sliding_window": 64}),
    "mistral, window 16": Kind("mistral", {**COMMON, "sliding_window": 16}, WINDOW),
    "mixtral": Kind("mixtral", {**COMMON, **EXPERTS, "sliding_window": None}),
    "qwen2": Kind("qwen2", COMMON),
    "qwen2_moe": Kind("qwen2_moe", MASKED),
    "qwen2_moe, window in the mask alone": Kind(
        "qwen2_moe",
        {**MASKED, "use_sliding_window": True, "sliding_window": 26, "max_window_layers": 0},
        "its sliding window of 26 is shorter",
    ),
    "qwen3": Kind("qwen3", HEADS),
    "qwen3_moe": Kind("qwen3_moe", {**HEADS, **EXPERTS, "moe_intermediate_size": 16, "decoder_sparse_step": 1}),
    "gemma": Kind("gemma", HEADS),
    "gemma2": Kind("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": Kind("gemma3_text", GEMMA),
    "gemma3, window 16": Kind("gemma3_text", {**GEMMA, "sliding_window": 16}, WINDOW),
    "phi": Kind("phi", COMMON),
    "phi3": Kind("phi3", {**COMMON, "pad_token_id": 0}),
    "gpt2": Kind("gpt2", GPT),
    "gpt_bigcode": Kind("gpt_bigcode", GPT),
    "gpt_neox": Kind("gpt_neox", FULL_HEADS),
    "opt": Kind("opt", {**FULL_HEADS, "ffn_dim": 48, "init_std": 0.2, "word_embed_proj_dim": 32}),
    "cohere": Kind("cohere", {**COMMON, "logit_scale": 0.25}),
    "cohere2": Kind("cohere2", {**COMMON, "logit_scale": 0.25, "sliding_window": 64}),
    "granite": Kind(
        "granite", {**COMMON, "logits_scaling": 4.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5}
    ),
    "olmo2": Kind("olmo2", COMMON),
    "olmo3": Kind("olmo3", {**COMMON, "sliding_window": 64}),
    "starcoder2": Kind("starcoder2", COMMON),
    "smollm3": Kind("smollm3", {**COMMON, "pad_token_id": 0}),
    "glm4": Kind("glm4", {**HEADS, "pad_token_id": 0}),
    "gpt_oss": Kind("gpt_oss", {**HEADS, **EXPERTS, "sliding_window": 64}, "its attention takes s_aux"),
    "bloom": Kind("bloom", {**GPT, "hidden_size": 32}, "it fails with ValueError"),
    "falcon": Kind("falcon", {**FULL_HEADS, "alibi": False}, OFF),
    "stablelm": Kind("stablelm", COMMON, OFF),
    "gptj": Kind("gptj", {**GPT, "rotary_dim": 8}, OFF if OLD_GPTJ else ""),
    "lfm2 (convolutions)": Kind(
        "lfm2", {**COMMON, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}, "its log-probs are off by"
    ),
    "mamba": Kind("mamba", {**COMMON, "state_size": 8}, "it fails with ValueError"),
}


@pytest.fixture
def saved(request, tmp_path) -> Path:
    """A model directory of the kind; every parameter is moved off its start, as norms and biases begin at 1 and 0."""
    kind = KINDS[request.param]
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.model_type, **kind.config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    return tmp_path


def eager(path: Path) -> PreTrainedModel:
    """The same model by transformers alone, with the attention that is written out in the model's file."""
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32)
    no_dropout(model)
    return model.train()


@pytest.mark.parametrize(("saved", "name"), [(name, name) for name in KINDS], indirect=["saved"], ids=KINDS)
def test_policy_architecture_gives_its_own_logps_packed_or_padded(saved, name) -> None:
    """Catches a common architecture that has quietly lost packing, one that is packed and must not be (attention that
    looks back over a window, state that runs on from answer to answer, sinks), a scale or soft-cap left out, and a
    fall-back that no message names."""
    notes: list[str] = []
    model = load_model(saved, "cpu", train=True)
    policy = Policy(model, 3, "float32").settle(LENGTH, Runtime(device="cpu"), notes.append)
    expected = KINDS[name].padded
    if expected:
        assert len(notes) == 1
        (note,) = notes
        assert note.startswith(f"{type(model).__name__}: it is padded instead of packed, as ")
        assert re.search(expected, note)
    else:
        assert notes == []
    batch = policy.batch(GROUPS)
    assert ("layout" in batch.inputs) is policy.packed is not expected
    plain = eager(saved)
    wanted = padded(plain, GROUPS)
    result = policy(batch)
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-4)
    assert apart(gradients(model, result), gradients(plain, wanted)) < 1e-5
