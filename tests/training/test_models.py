"""Loading what a person gives us, and refusing what cannot or must not be loaded."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_data import copy_model

from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.modeling.loading import load_model, load_tokenizer, pick_device, save_model
from spin_core.modeling.opponent import opponent, release_opponent


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return copy_model(tmp_path / "model")


def edit(path: Path, **changes) -> None:
    """Changes JSON fields; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_load_model_pickled_weights_refused(source) -> None:
    """Catches torch.load of weights that can run code."""
    (source / "model.safetensors").unlink()
    torch.save({}, source / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"only pickled weights \(pytorch_model.bin\); convert"):
        load_model(source, "cpu")


def test_load_model_damaged_or_missing_files_refused(source, tmp_path) -> None:
    """Catches tracebacks where a sentence is owed, for no directory, no weights, cut weights."""
    with pytest.raises(BadInput, match=r"no config\.json"):
        load_model(tmp_path / "nowhere", "cpu")
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BadInput, match="does not load"):
        load_model(source, "cpu")
    weights.unlink()
    with pytest.raises(BadInput, match=r"no model\.safetensors"):
        load_model(source, "cpu")


def test_load_model_weight_missing_refused(source) -> None:
    """Catches transformers' habit of filling what is missing with random numbers."""
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lack 1 weights \(first: model.layers.1.mlp.up_proj.weight\)"):
        load_model(source, "cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_load_model_weight_that_is_not_finite_is_named(source, value) -> None:
    """Catches weights with which every loss is NaN: the run failed later, with "nan has no place in a key"."""
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 2] = value
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"model\.safetensors: model\.layers\.1\.mlp\.up_proj\.weight has weights.*NaN"):
        load_model(source, "cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_load_model_own_code_refused(source, name) -> None:
    """Catches code from a model directory being run."""
    edit(source / name, auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(BadInput, match="auto_map"):
        load_tokenizer(source)


def test_load_tokenizer_without_template_or_files_refused(source) -> None:
    """Catches a base model whose prompts would be rendered by nobody."""
    edit(source / "tokenizer_config.json", chat_template=None)
    with pytest.raises(BadInput, match=r"chat_template\.jinja"):
        load_tokenizer(source)
    (source / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="no usable tokenizer"):
        load_tokenizer(source)


def test_load_tokenizer_without_pad_takes_eos(source) -> None:
    """Catches padding that fails with a tokenizer that has no pad token (Mistral, Llama)."""
    edit(source / "tokenizer_config.json", pad_token=None)
    edit(source / "special_tokens_map.json", pad_token=None)
    assert load_tokenizer(source).pad_token_id == 2


def test_load_model_train_has_gradients_but_no_dropout(source) -> None:
    """Catches dropout in training: policy and opponent would differ at the same weights."""
    edit(source / "config.json", attention_dropout=0.5)
    model = load_model(source, "cpu", train=True)
    ids = torch.arange(20)[None]
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_opponent_same_path_loaded_once(source, tmp_path) -> None:
    """Catches a model loaded per shard, and two models kept at once."""
    first = opponent(source, "cpu")
    assert opponent(source, "cpu") is first
    assert not any(p.requires_grad for p in first.parameters())
    other = opponent(copy_model(tmp_path / "other", "opponent_weights.safetensors"), "cpu")
    assert other is not first
    assert opponent(source, "cpu") is not first
    release_opponent()


def test_save_model_tied_weights_load_tied_and_equal(source, tmp_path) -> None:
    """Catches tied embeddings that are saved twice, or come back random."""
    edit(source / "config.json", tie_word_embeddings=True, _name_or_path="/home/someone/model")
    weights = load_file(source / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    model = load_model(source, "cpu", train=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    out = tmp_path / "out"
    out.mkdir()
    save_model(model, source, out)
    again = load_model(out, "cpu")
    assert torch.equal(again.lm_head.weight, weights["model.embed_tokens.weight"])
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert "someone" not in (out / "config.json").read_text()


def test_pick_device_absent_gpu_refused() -> None:
    """Catches a traceback from deep inside CUDA for a GPU that is not there."""
    with pytest.raises(BadInput, match="CUDA devices"):
        pick_device(Runtime(device="cuda:99"))
    with pytest.raises(BadInput, match="is not a device"):
        pick_device(Runtime(device="gpu"))
    assert pick_device(Runtime(device="cpu")).type == "cpu"


def test_load_model_router_noise_off(tmp_path) -> None:
    """Catches experts chosen with noise while training: log-probs would differ from one pass to the next."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    MixtralForCausalLM(
        MixtralConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=4,
            router_jitter_noise=0.5,
        )
    ).save_pretrained(tmp_path)
    model = load_model(tmp_path, "cpu", train=True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
