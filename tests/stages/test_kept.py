"""What a kept engine must have in common with the next model, and what it must show: decided without vLLM."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spin_core.config.runtime import Runtime
from spin_core.engines import kept
from spin_core.engines.kept import TOLERANCE, Piece, verdict
from spin_core.engines.transformers_engine import sample
from spin_core.job import Job
from spin_core.stages import demo_model

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """θ_t, and θ_{t+1} whose weights differ from it as after a hundred steps of lr 5e-7."""
    folders = [tmp_path_factory.mktemp(name) for name in ("old", "new")]
    demo_model.run({}, demo_model.Config(seed=5), Job(out=folders[0], scratch=folders[0]))
    shutil.copytree(folders[0], folders[1], dirs_exist_ok=True)
    torch.manual_seed(0)
    weights = {n: w + 5e-5 * torch.randn_like(w) for n, w in load_file(folders[0] / "model.safetensors").items()}
    save_file(weights, folders[1] / "model.safetensors", metadata={"format": "pt"})
    return folders


def _wanted(model: Path, length: int = 72, decodes: bool = False, dtype: str = "float32", **runtime) -> kept.Wanted:
    return kept.wanted(model, "digest", length, decodes, Runtime(**runtime), dtype)


def test_next_model_of_the_same_run_fits(models) -> None:
    """Catches a check that starts an engine for each model: other weights are no other settings, nor are the fields of
    config.json that say who wrote it, nor shorter sequences."""
    config = json.loads((models[1] / "config.json").read_text())
    (models[1] / "config.json").write_text(json.dumps({**config, "transformers_version": "0.0", "_name_or_path": "x"}))
    assert kept.unfit(_wanted(models[0], decodes=True), _wanted(models[1], 40)) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 73}, "sequences of 72 tokens, and 73 are needed"),
        ({"decodes": True}, "without the tokenizer"),
        ({"dtype": "bfloat16"}, "another dtype"),
        ({"tensor_parallel": 2}, "another runtime.tensor_parallel"),
        ({"requests_in_flight": 4}, "another runtime.requests_in_flight"),
    ],
)
def test_other_settings_need_a_fresh_engine(models, change, message) -> None:
    """Catches an engine that serves a model by another one's settings."""
    assert message in kept.unfit(_wanted(models[0]), _wanted(models[1], **change))


def test_other_architecture_tokenizer_or_length_of_scaled_positions_needs_a_fresh_engine(models, tmp_path) -> None:
    """Catches an engine that draws with one model's layers, stops by its tokenizer, or computes positions by a longer
    sequence than the model's answers would have alone."""
    other = tmp_path / "other"
    shutil.copytree(models[0], other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert "another architecture" in kept.unfit(_wanted(models[0]), _wanted(other))
    (other / "config.json").write_text(json.dumps({**config, "rope_scaling": {"rope_type": "longrope"}}))
    assert kept.unfit(_wanted(other), _wanted(other)) == ""
    assert "72 tokens, and 40 are needed" in kept.unfit(_wanted(other), _wanted(other, 40))
    (other / "config.json").write_text(json.dumps(config))
    (other / "tokenizer_config.json").write_text("{}")
    assert kept.unfit(_wanted(models[0], decodes=True), _wanted(other)) == ""
    assert "another tokenizer" in kept.unfit(_wanted(models[0], decodes=True), _wanted(other, decodes=True))


def _held(model: Path, names: tuple[str, ...] = (EMBEDDING, NORM)) -> list[Piece]:
    """As an engine would show them, and a fused weight that no checkpoint has."""
    weights = load_file(model / "model.safetensors")
    return [Piece.of(n, weights[n]) for n in names] + [Piece.of("model.layers.0.qkv_proj.weight", torch.ones(3, 2))]


def test_weights_of_the_model_before_are_caught_by_their_bits(models) -> None:
    """Catches stale weights where the two models' log-probs are closer than the tolerance: all of them, one tensor of
    them, and the case in which nothing that can be compared tells the models apart."""
    old, new = (kept.own_pieces(model, _held(model), torch.float32) for model in models)
    assert [piece.name for piece in new] == [EMBEDDING, NORM]
    assert verdict(1e-6, "float32", _held(models[1]), new, old) == ""
    assert EMBEDDING in verdict(1e-6, "float32", _held(models[0]), new, old)
    mixed = [_held(models[1])[0], *_held(models[0])[1:]]
    assert NORM in verdict(1e-6, "float32", mixed, new, old)
    assert EMBEDDING in verdict(1e-6, "float32", [], new, old)
    assert "this model differs from" in verdict(1e-6, "float32", _held(models[1]), new, new)
    assert "this model differs from" in verdict(1e-6, "float32", _held(models[1]), [], [])
    assert verdict(1e-6, "float32", _held(models[1]), new, None) == "", "woken with the same model"


def test_rows_of_an_embedding_are_compared_where_they_belong(models) -> None:
    """Catches a second GPU's rows that are compared with the first one's, and a padded or cut weight that passes for
    whole."""
    weight = load_file(models[1] / "model.safetensors")[EMBEDDING]
    half = Piece.of(EMBEDDING, weight[50:], 50, part=True)
    assert kept.own_pieces(models[1], [half], torch.float32) == [half]
    assert kept.own_pieces(models[1], [Piece.of(EMBEDDING, weight[50:])], torch.float32) == []
    (in_bfloat16,) = kept.own_pieces(models[1], [half], torch.bfloat16)
    assert in_bfloat16 == Piece.of(EMBEDDING, weight[50:].bfloat16(), 50, part=True)


def test_log_probs_decide_beside_the_bits(models) -> None:
    """Catches keys and values of the old model, or weights in kernels that nobody can look into: the log-probs of what
    was drawn are another model's, or no numbers."""
    held = _held(models[1])
    own = kept.own_pieces(models[1], held, torch.float32)
    assert "0.5 nats from this model's own" in verdict(0.5, "float32", held, own, None)
    assert verdict(0.01, "bfloat16", held, own, None) == "" and TOLERANCE["float32"] < 0.01
    assert "not loaded" in verdict(math.nan, "float32", held, own, None)
    assert math.isnan(kept.distance([[0.0]], [[math.nan]])) and math.isnan(kept.distance([[0.0]], [[-math.inf]]))
    assert math.isnan(kept.distance([[0.0, 1.0]], [[0.0]])) and math.isnan(kept.distance([], []))
    assert kept.distance([[-1.0, -2.0], [-3.0]], [[-1.0, -2.25], [-3.0]]) == 0.25


def test_own_log_probs_are_those_that_an_engine_draws_with(models) -> None:
    """Catches positions that are off by one, and a tolerance that stale weights of a short training would pass, or that
    right ones would not: measured with the transformers engine in the place of vLLM's."""
    requests, how = kept.probe(models[1], 72)
    assert (requests, how) == kept.probe(models[0], 72) and len({tuple(one.prompt) for one in requests}) == len(
        requests
    )
    assert all(len(one.prompt) + how.max_new_tokens <= 72 for one in requests)
    job = Job(out=Path(), scratch=Path(), runtime=Runtime(device="cpu", threads=1))
    answers = sample(models[1], requests, how, job, "probe")
    drawn = [(one.prompt, answer.token_ids) for one, answer in zip(requests, answers, strict=True)]
    new, old = (
        kept.distance(kept.own_logps(model, torch.float32, drawn), [answer.logps or [] for answer in answers])
        for model in models[::-1]
    )
    assert new < 1e-5 < TOLERANCE["float32"] < old / 3
