"""finetune.lora: each iteration trains a fresh adapter on θ_t and publishes the merged model θ_{t+1}."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_resume import Stopped, content, kill_at, stopping
from training_data import (
    CHAT,
    DIGESTS,
    copy_model,
    finetune_config,
    groups_of,
    job_at,
    made_up_pairs,
    metrics_of,
    pairs_tree,
    rows_tree,
    scored,
)
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

from spin_core.config.finetune import Finetune, Lora, score_settings
from spin_core.config.profile import load_profile
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.modeling.collate import Groups
from spin_core.modeling.loading import load_model, save_model
from spin_core.modeling.logprobs import Policy
from spin_core.modeling.lora import add_adapter, merged, seed_of
from spin_core.modeling.opponent import opponent
from spin_core.stages import evaluate, finetune, score
from spin_core.store.keys import config_payload

LORA = {"rank": 4, "alpha": 8}
TRAINED = {"lora": LORA, "lr": 5e-3}
NONE_TRAINED = {"lora": LORA, "lr": 1e-300}  # a step of that size is 0 in float32


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def policy_of(model: PreTrainedModel) -> Policy:
    return Policy(model, 3, "float32").settle(128, Runtime(device="cpu"))


def adapted(path: Path, **changes: Any) -> tuple[PreTrainedModel, Lora]:
    """The model in `path` with an adapter that does something: B is random."""
    part, model = Lora(**{**LORA, **changes}), load_model(path, "cpu", train=True)
    add_adapter(model, part, seed=5)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05, generator=generator)
    return model, part


@pytest.fixture(scope="module")
def groups() -> Groups:
    """Four pairs as token sequences."""
    return groups_of(made_up_pairs(4))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, theta) -> dict:
    """What finetune reads: ten pairs and their scores under θ_0."""
    root = tmp_path_factory.mktemp("lora")
    tree = pairs_tree(root / "pairs", made_up_pairs(10), [])
    return {"model": theta, "pairs": [tree], "logps": [scored(root / "score", theta, tree, finetune_config())]}


def test_lora_zero_step_next_opponent_is_policy_to_the_last_bit(spin, tmp_path, theta, groups) -> None:
    """Catches an adapter that does not begin at 0, a merge that rounds, adds B·A of another seed or loses a zero's
    sign, and a published adapter in place of a model: θ_{t+1}'s file must be θ_t's, and its policy the opponent."""
    source = copy_model(tmp_path / "source")
    weights = weights_of(source)
    weights["model.layers.0.mlp.up_proj.weight"][0] = -0.0
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    start = tmp_path / "start"
    start.mkdir()
    save_model(load_model(source, "cpu"), source, start)
    _, out = spin(model=start, **NONE_TRAINED)
    assert (out / "model.safetensors").read_bytes() == (start / "model.safetensors").read_bytes()

    model = load_model(out, "cpu", train=True)
    add_adapter(model, Lora(**LORA), seed=9)
    policy, other = policy_of(model), policy_of(opponent(start, "cpu"))
    assert torch.equal(policy(policy.batch(groups)), other(other.batch(groups)))


def test_lora_second_iteration_trains_against_theta_1(spin, tmp_path, inputs) -> None:
    """Catches the reference's fault, the SFT base as the opponent of every iteration: with θ_1's scores of the pairs
    the margin of iteration 2 begins at 0, with θ_0's it does not."""
    _, theta_1 = spin(**TRAINED)
    _, theta_2 = spin(model=theta_1, **TRAINED)
    first = metrics_of(theta_2)[0]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    job = job_at(tmp_path, DIGESTS)
    finetune.run({**inputs, "model": theta_1}, finetune_config(**TRAINED), job)
    assert metrics_of(job.out)[0]["rewards/margins"] > 0.1


@pytest.mark.parametrize("kind", ["all", "tied", "two", "conv1d"])
def test_lora_merged_model_is_the_trained_one(tmp_path, groups, kind) -> None:
    """Catches a wrong factor (alpha/rank), a transpose, layers left out of the merge, names of an adapter in the file,
    and tied embeddings that come apart."""
    source = copy_model(tmp_path / "source")
    if kind == "tied":
        settings = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
        weights = weights_of(source)
        del weights["lm_head.weight"]
        save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    if kind == "conv1d":
        torch.manual_seed(0)
        words = load_model(source, "cpu").config.vocab_size
        config = GPT2Config(
            vocab_size=words, n_positions=128, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
        )
        GPT2LMHeadModel(config).save_pretrained(source)
    model, part = adapted(source, **({"target_modules": ["q_proj", "down_proj"]} if kind == "two" else {}))
    trained, plain = policy_of(model), load_model(source, "cpu")
    full = merged(model, source, part)
    out = tmp_path / "out"
    out.mkdir()
    save_model(full, source, out)
    assert set(weights_of(out)) == set(weights_of(source))
    assert [name for name, _ in full.named_parameters()] == [name for name, _ in plain.named_parameters()]
    with torch.no_grad():
        result, expected, before = (
            policy(policy.batch(groups)) for policy in (policy_of(load_model(out, "cpu")), trained, policy_of(plain))
        )
    torch.testing.assert_close(result, expected, rtol=0, atol=5e-4)
    assert (result - before).abs().max() > 0.3


def test_lora_is_trained_packed_without_all_logits(tmp_path, inputs, policy_calls) -> None:
    """Catches a policy of peft's wrapper in place of the model in it, which falls back to the logits of every
    position, and an adapter with which it would fall back to padding."""
    events: list[dict] = []
    finetune.run(inputs, finetune_config(**TRAINED), job_at(tmp_path, DIGESTS, events))
    assert not [event["note"] for event in events if "note" in event]
    assert policy_calls
    assert all("layout" in batch.inputs for batch in policy_calls)


def test_lora_only_the_adapter_is_trained_and_kept(spin, theta, tmp_path, inputs) -> None:
    """Catches gradients, optimiser state or checkpoints of frozen weights, and a full run's checkpoint that lacks
    weights; `trainable` says how many there are."""
    linear = [w for name, w in weights_of(theta).items() if name.endswith("proj.weight")]
    summary, out = spin(**TRAINED)
    assert summary["trainable"] == sum(LORA["rank"] * sum(w.shape) for w in linear)
    untouched = set(weights_of(theta)) - {name for name in weights_of(theta) if name.endswith("proj.weight")}
    assert all(torch.equal(weights_of(out)[name], weights_of(theta)[name]) for name in untouched)
    assert spin()[0]["trainable"] == sum(w.numel() for w in weights_of(theta).values())

    kept = {}
    for name, changes in (("lora", TRAINED), ("full", {})):
        job = job_at(tmp_path / name, DIGESTS, checkpoint_every=4)
        finetune.run(inputs, finetune_config(**changes), job)
        kept[name] = [
            load_file(job.scratch / "checkpoint-00000004" / f"{part}.safetensors") for part in ("model", "optimizer")
        ]
    assert set(kept["full"][0]) == set(weights_of(theta))
    assert len(kept["lora"][0]) == 2 * len(linear)
    assert all("lora_" in name for name in kept["lora"][0])
    averages = [value for name, value in kept["lora"][1].items() if name.endswith("square_avg")]
    assert sum(value.numel() for value in averages) == summary["trainable"]


def test_lora_gradient_checkpointing_same_gradients(tmp_path, inputs) -> None:
    """Catches checkpointed blocks whose inputs require no gradient, so that the adapter learns nothing or less, and a
    frozen model in eval mode, where blocks are not checkpointed at all."""
    blocks: list[torch.nn.Module] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: blocks.append(module) if isinstance(module, LlamaMLP) else None
    )
    runs, passes = [], []
    for on in (False, True):
        job = job_at(tmp_path / str(on), DIGESTS, gradient_checkpointing=on)
        finetune.run(inputs, finetune_config(**TRAINED), job)
        runs.append(metrics_of(job.out))
        passes.append(sum(block.training for block in blocks))
        blocks.clear()
    hook.remove()
    plain, recomputed = runs
    assert passes[1] > 1.5 * passes[0]
    assert plain[0]["grad_norm"] > 0.1
    assert [x["grad_norm"] for x in recomputed] == pytest.approx([x["grad_norm"] for x in plain], rel=1e-4)
    assert recomputed[-1]["rewards/margins"] == pytest.approx(plain[-1]["rewards/margins"], abs=1e-3)


def test_lora_learns_in_both_precisions(spin) -> None:
    """Catches an adapter half of which is frozen (B stays 0), and a policy that does not begin as its opponent."""
    for precision in ("float32", "bfloat16"):
        lines = metrics_of(spin(precision=precision, **TRAINED)[1])
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=5e-3)
        assert lines[-1]["rewards/margins"] > 0.5


@pytest.mark.full
def test_lora_killed_and_resumed_same_bytes(tmp_path, inputs) -> None:
    """Catches a resume without the adapter's weights or moments, or with another A."""
    config = finetune_config(schedule_epochs=3.0, warmup_ratio=0.1, **TRAINED)
    full = job_at(tmp_path / "full", DIGESTS, checkpoint_every=0)
    finetune.run(inputs, config, full)
    for step in (1, 5):
        with pytest.raises(Stopped):
            job = job_at(tmp_path / f"stopped{step}", DIGESTS, checkpoint_every=1)
            finetune.run(inputs, config, stopping(job, "finetune", step))
    kill_at(4, inputs, tmp_path / "killed", **TRAINED)
    for name, steps in (("stopped1", 0), ("stopped5", 4), ("killed", 2)):
        rerun = job_at(tmp_path / name, DIGESTS, checkpoint_every=2)
        assert finetune.run(inputs, config, rerun)["resumed_at"] >= steps
        assert content(rerun.out) == content(full.out)


def test_lora_same_seed_same_adapter_other_seed_another(spin, theta) -> None:
    """Catches an A from torch's global generator (a rerun would differ, or what is drawn after it), one A for every
    seed, and one for every iteration, whose updates would share a row space."""
    _, one = spin(**TRAINED)
    _, again = spin(again=1, **TRAINED)
    assert content(one) == content(again)
    before = torch.get_rng_state()
    drawn = [adapted_a(theta, seed) for seed in (seed_of(7, "m"), seed_of(7, "m"), seed_of(8, "m"), seed_of(7, "n"))]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[3])


def adapted_a(path: Path, seed: int) -> torch.Tensor:
    model = load_model(path, "cpu")
    add_adapter(model, Lora(), seed)
    return next(weight for name, weight in model.named_parameters() if "lora_A" in name)


@pytest.mark.parametrize("names", [["q_prj"], ["q_proj", "mlp"], ["lm_head"], ["embed_tokens"]])
def test_lora_unknown_target_named(theta, names) -> None:
    """Catches a traceback from peft, a name that is silently left out, and an adapter on a layer that may be tied."""
    with pytest.raises(BadInput, match=rf"finetune\.lora\.target_modules: .*'{names[-1]}'.*q_proj"):
        add_adapter(load_model(theta, "cpu"), Lora(target_modules=names), seed=0)


def test_lora_in_a_profile() -> None:
    """Catches `--set finetune.lora.rank` that needs a section to be there, names in another order that make another
    key, a complaint without its field, and keys of runs without an adapter that change."""
    config, _ = load_profile("demo-tasks", ["finetune.lora.rank=8", "finetune.lora.target_modules=[v_proj, q_proj]"])
    assert config.finetune.lora == Lora(rank=8, target_modules=["q_proj", "v_proj"])
    for wrong in ("3", "[]", "q_proj", "[1]"):
        with pytest.raises(BadInput, match=r"finetune\.lora\.target_modules: give all-linear or a list"):
            load_profile("demo-tasks", [f"finetune.lora.target_modules={wrong}"])
    with pytest.raises(BadInput, match=r"finetune\.lora\.rnk: unknown field; did you mean rank\?"):
        load_profile("demo-tasks", ["finetune.lora.rnk=8"])
    assert "lora" not in config_payload(Finetune())
    assert "quantize" not in config_payload(score_settings(Finetune()))
    assert (
        config_payload(score_settings(Finetune(lora=Lora(quantize="nf4"), precision="bfloat16")))["quantize"] == "nf4"
    )


def test_lora_nf4_in_float32_refused() -> None:
    """Catches a key that says float32 for a model that computes in bfloat16."""
    with pytest.raises(ValueError, match="computes in bfloat16; set precision: bfloat16"):
        Finetune(lora=Lora(quantize="nf4"))


def test_lora_nf4_on_cpu_refused_in_a_sentence(tmp_path, inputs) -> None:
    """Catches a traceback of bitsandbytes, scores of the unquantised opponent for a quantised policy, and a policy
    trained unquantised where 4 bits were requested."""
    config = finetune_config(lora={"quantize": "nf4"}, precision="bfloat16")
    with pytest.raises(BadInput, match=r"`score`.*run score again"):
        finetune.run(inputs, config, job_at(tmp_path / "stale", DIGESTS))
    how = score.Config(score=score_settings(config.finetune), chat=CHAT)
    sentence = r"finetune\.lora\.quantize: nf4 runs on a CUDA GPU, not on cpu"
    with pytest.raises(BadInput, match=sentence):
        score.run({"model": inputs["model"], "pairs": inputs["pairs"][0]}, how, job_at(tmp_path / "score"))
    with pytest.raises(BadInput, match=sentence):
        load_model(inputs["model"], "cpu", train=True, quantize="nf4")


def test_evaluate_nf4_likelihood_is_of_the_unquantised_model(tmp_path, theta) -> None:
    """Catches figures of a quantised model beside answers of the unquantised one: without pairs it needs no GPU."""
    tree = rows_tree(tmp_path / "rows", [], made_up_pairs(4))
    result = []
    for quantize in ("none", "nf4"):
        part = finetune_config(lora={"quantize": quantize}, precision="bfloat16")
        settings = evaluate.Evaluate(exact_match="")
        config = evaluate.Config(evaluate=settings, chat=CHAT, score=score_settings(part.finetune), seed=1)
        given = {"model": theta, "rows": tree, "tokens": tree}
        result.append(evaluate.run(given, config, job_at(tmp_path / quantize)))
    assert result[0] == result[1]


def test_load_model_adapter_directory_refused(tmp_path) -> None:
    """Catches transformers' habit, once peft is installed, of loading the model that adapter_config.json names."""
    source = copy_model(tmp_path / "model")
    (source / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "elsewhere/other"}))
    with pytest.raises(BadInput, match="this is an adapter"):
        load_model(source, "cpu")
