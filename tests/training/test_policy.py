"""What `Policy.settle` finds out about a model, says, and refuses."""

import json

import pytest
import torch
from packing_data import WORDS, padded, tiny_llama, tokens
from training_data import DIGESTS, copy_model, finetune_config, job_at, made_up_pairs, pairs_tree, score_config, scored

from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.modeling import attention
from spin_core.modeling.chunked_logps import Head, head_of
from spin_core.modeling.logprobs import Policy
from spin_core.stages import finetune, score

GROUPS = [[tokens([7, 8, 9], [10, 11, 50, 51]), tokens([7, 8, 9], [40])]]


def made(model, longest: int = 64, **runtime):
    """The policy and its messages."""
    notes: list[str] = []
    return Policy(model, 3, "float32").settle(longest, Runtime(device="cpu", **runtime), notes.append), notes


def check_logps(policy, model_like) -> None:
    with torch.no_grad():
        torch.testing.assert_close(policy(policy.batch(GROUPS)), padded(model_like, GROUPS), rtol=0, atol=1e-4)


def test_settle_wrong_kernel_noticed_and_padded(monkeypatch) -> None:
    """Catches a probe that any attention passes: here the second answer sees the first."""

    def sees_all(layout, query, key, value, scaling):
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2)

    monkeypatch.setitem(attention.KERNELS, "sdpa", sees_all)
    model = tiny_llama(torch.float32, "sdpa")
    policy, notes = made(model)
    assert not policy.packed
    assert len(notes) == 1 and "padded instead of packed, as its log-probs are off by" in notes[0]
    assert model.config._attn_implementation == "sdpa"
    check_logps(policy, tiny_llama(torch.float32))


def test_settle_groups_that_see_each_other_noticed(monkeypatch) -> None:
    """Catches a probe of a single group, which any leak from pair to pair passes: only the second group is wrong."""
    right = attention.KERNELS["sdpa"]

    def leaks(layout, query, key, value, scaling):
        out = right(layout, query, key, value, scaling)
        return torch.where(torch.from_numpy(layout.group > 0)[None, :, None, None], out.mean(1, keepdim=True), out)

    monkeypatch.setitem(attention.KERNELS, "sdpa", leaks)
    policy, notes = made(tiny_llama(torch.float32, "sdpa"))
    assert not policy.packed and len(notes) == 1


def test_settle_out_of_memory_in_the_probe_is_no_reason_to_pad() -> None:
    """Catches a full GPU read as a model that cannot be packed: it would go on in the form that takes more memory."""
    model = tiny_llama(torch.float32, "sdpa")

    def full(module, args, kwargs):
        if "layout" in kwargs:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.register_forward_pre_hook(full, with_kwargs=True)
    with pytest.raises(torch.OutOfMemoryError):
        made(model)


def test_settle_positions_ignored_noticed(monkeypatch) -> None:
    """Catches a probe that cannot see whether the second answer's positions begin again behind the prompt."""
    model = tiny_llama(torch.float32, "sdpa")
    rotary = model.model.rotary_emb.forward
    monkeypatch.setattr(
        model.model.rotary_emb, "forward", lambda x, position_ids: rotary(x, torch.arange(x.shape[1])[None])
    )
    policy, notes = made(model)
    assert not policy.packed and len(notes) == 1


@pytest.mark.parametrize(
    "change", [{"logits_scaling": 4.0}, {"final_logit_softcapping": 2.0}], ids=["scale", "soft-cap"]
)
def test_settle_output_layer_unlike_its_config_takes_all_logits(change) -> None:
    """Catches a config field that means something else in another architecture and is believed: Llama has neither."""
    model = tiny_llama(torch.float32, "sdpa")
    for name, value in change.items():
        setattr(model.config, name, value)
    assert head_of(model) != Head(model.lm_head)
    policy, notes = made(model)
    assert policy.packed
    assert len(notes) == 1 and "all its logits are computed, as its output layer is not just linear" in notes[0]
    check_logps(policy, tiny_llama(torch.float32))


def test_settle_odd_output_layer_takes_all_logits() -> None:
    """Catches an output layer with a forward of its own (an adapter, a quantised one) whose weight alone is used."""

    class Odd(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input) + super().forward(input.tanh())

    models = [tiny_llama(torch.float32, kind) for kind in ("sdpa", "eager")]
    for model in models:
        odd = Odd(24, WORDS, bias=False)
        odd.weight = model.lm_head.weight
        model.set_output_embeddings(odd)
    policy, notes = made(models[0])
    assert policy.packed and notes == []
    check_logps(policy, models[1])


def test_settle_packing_off_pads_without_a_note() -> None:
    """Catches a setting that does nothing, or a warning for what was requested."""
    model = tiny_llama(torch.float32, "sdpa")
    policy, notes = made(model, packing=False)
    assert not policy.packed and notes == []
    assert model.config._attn_implementation == "sdpa"
    check_logps(policy, tiny_llama(torch.float32))


def test_settle_again_on_one_model_either_way() -> None:
    """Catches a model that keeps the attention of a former policy (the opponent is loaded once for several scores)."""
    model = tiny_llama(torch.float32, "sdpa").requires_grad_(False)
    for packing in (True, False, True):
        policy, notes = made(model, packing=packing)
        assert policy.packed is packing and notes == []
        check_logps(policy, tiny_llama(torch.float32))


def test_settle_model_still_generates_as_before() -> None:
    """Catches the attention of packing that breaks plain use of the model: evaluate generates with the one that it has
    scored with."""
    plain, model = (tiny_llama(torch.float32, "sdpa").eval().requires_grad_(False) for _ in range(2))
    made(model)
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    how = {"attention_mask": (ids > 0).long(), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **how), plain.generate(ids, **how))


@pytest.mark.parametrize("packing", [True, False])
def test_stages_sequence_beyond_the_context_refused(tmp_path, packing) -> None:
    """Catches positions that the model was never trained for (rotary), or an index error from inside it (learned)."""
    model = copy_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    pairs = pairs_tree(tmp_path / "pairs", made_up_pairs(4), [])
    logps = scored(tmp_path / "score", model, pairs, finetune_config())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 60}))
    message = r"the longest prompt and answer have 61 tokens, the model's context is 60; lower max_length"
    other = copy_model(tmp_path / "other")  # the opponent is remembered by its path
    (other / "config.json").write_text((model / "config.json").read_text())
    with pytest.raises(BadInput, match=message):
        job = job_at(tmp_path / "again", packing=packing)
        score.run({"model": other, "pairs": pairs}, score_config(finetune_config()), job)
    with pytest.raises(BadInput, match=message):
        inputs = {"model": model, "pairs": [pairs], "logps": [logps]}
        finetune.run(inputs, finetune_config(), job_at(tmp_path / "run", DIGESTS, packing=packing))
    exactly = copy_model(tmp_path / "exactly")
    (exactly / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 61}))
    scored(tmp_path / "fits", exactly, pairs, finetune_config(), packing=packing)
