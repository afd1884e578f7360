"""Slots and transformers' `generate`: tiny random models of many architectures, each against its own plain forward
passes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spin_core.config.runtime import Runtime
from spin_core.engines import Answer, Request, Sampling, slots
from spin_core.engines.decoding import draw, uniforms
from spin_core.engines.requests import row_seed
from spin_core.engines.transformers_engine import sample
from spin_core.job import Job
from spin_core.modeling.loading import load_model
from spin_core.modeling.opponent import opponent

WORDS, NEW = 60, 12
COMMON = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {**COMMON, "head_dim": 8}
FULL = {name: value for name, value in COMMON.items() if name != "num_key_value_heads"}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
GEMMA = {**HEADS, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
CONVOLUTIONS = {**COMMON, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama, grouped keys": ("llama", COMMON, ""),
    "gpt2, learned positions": ("gpt2", GPT, ""),
    "mistral, window 64": ("mistral", {**COMMON, "sliding_window": 64}, ""),
    "mistral, window 8": ("mistral", {**COMMON, "sliding_window": 8}, "its sliding window of 8 is shorter"),
    "gemma2, written-out attention": ("gemma2", {**GEMMA, "sliding_window": 64}, ""),
    "gemma2, window 8": ("gemma2", {**GEMMA, "sliding_window": 8}, "its sliding window of 8 is shorter"),
    "phi": ("phi", COMMON, ""),
    "qwen2": ("qwen2", COMMON, ""),
    "gpt_neox": ("gpt_neox", FULL, ""),
    "bloom, biases by distance": ("bloom", {**GPT, "hidden_size": 32}, "it fails with"),
    "mamba, a state": ("mamba", {**COMMON, "state_size": 8}, "a layer keeps more than keys and values"),
    "lfm2, convolutions": ("lfm2", CONVOLUTIONS, "a layer keeps more than keys and values"),
}
"""Name → its type, its config, and why slots would be wrong (empty: they are used)."""
BOTH = ["llama, grouped keys", "mistral, window 8"]
"""A model that is answered in slots, and one that is not."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    """Name of a kind → its model directory, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            model_type, config, _ = KINDS[name]
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            made[name] = tmp_path_factory.mktemp("model")
            model.save_pretrained(made[name])
        return made[name]

    return make


def _requests() -> list[Request]:
    """Prompts of 1 to 17 tokens, some of which begin alike."""
    draws = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, WORDS, (n,), generator=draws).tolist() for n in (5, 1, 9, 17, 2, 5, 12, 9)]
    prompts += [[*prompts[3][:8], 7], prompts[3][:16]]
    return [Request(f"row{i}", prompt, row_seed(0, f"row{i}", "test")) for i, prompt in enumerate(prompts)]


def _how(temperature: float = 0.0, **options) -> Sampling:
    settings: dict[str, Any] = {"top_p": 1.0, "max_new_tokens": NEW, "stop_ids": frozenset(range(2, 6)), "pad_id": 0}
    return Sampling(temperature, **(settings | options))


def _sample(path: Path, requests: list[Request], how: Sampling, batch: int = 4) -> tuple[list[Answer], Job, list[dict]]:
    events: list[dict] = []
    runtime = Runtime(device="cpu", threads=1, generate_batch=batch)
    job = Job(out=path, scratch=path, runtime=runtime, send=events.append)
    return sample(path, requests, how, job, "x"), job, events


_plain = cache(load_model)
"""The model once more, which no engine touches."""


@torch.no_grad()
def _expected(path: Path, request: Request, how: Sampling) -> Answer:
    """One answer by plain forward passes of the full sequence, without a cache."""
    model, ids, logps = _plain(path, "cpu"), list(request.prompt), list[float]()
    for uniform in torch.from_numpy(uniforms(request.seed, how.max_new_tokens)):
        logits = model(torch.tensor([ids]), use_cache=False).logits[:, -1].float()
        allowed = logits.clone()
        if len(logps) < how.min_new_tokens:
            allowed[:, sorted(how.stop_ids)] = -torch.inf
        greedy = how.temperature == 0
        token = allowed.argmax(-1) if greedy else draw(allowed, uniform[None], how.temperature, how.top_p)
        ids.append(int(token))
        logps.append(float(logits.log_softmax(-1)[0, ids[-1]]))
        if ids[-1] in how.stop_ids:
            break
    tokens = ids[len(request.prompt) :]
    finish = "stop" if tokens[-1] in how.stop_ids else "length"
    return Answer(request.id, tokens, finish, logps if how.logprobs else None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", KINDS)
def test_architecture_gives_its_own_answers_in_slots_or_by_generate(saved, name: str, temperature: float) -> None:
    """Catches slots for a model that keeps more than keys and values, a wrong position, mask or group of query heads, a
    common architecture that has quietly lost its slots, and a model that is left with another attention."""
    how, requests, why = _how(temperature), _requests(), KINDS[name][2]
    path = saved(name)
    before = opponent(path, torch.device("cpu")).config._attn_implementation
    answers, _, events = _sample(path, requests, how)
    notes = [event["note"] for event in events if "note" in event]
    assert answers == [_expected(path, request, how) for request in requests]
    assert (why in notes[0]) if why else not notes
    assert opponent(path, torch.device("cpu")).config._attn_implementation == before
    assert not temperature or len({len(answer.token_ids) for answer in answers}) > 1  # or rows would end together


OPTIONS = {
    "greedy, least number": {"temperature": 0.0, "min_new_tokens": 6},
    "least number": {"temperature": 1.0, "min_new_tokens": 4},
    "nucleus, log-probs": {"temperature": 0.7, "top_p": 0.8, "logprobs": True},
    "all": {"temperature": 1.3, "top_p": 0.9, "min_new_tokens": 5, "logprobs": True},
    "all, least above most": {"temperature": 1.0, "min_new_tokens": NEW + 5, "logprobs": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", BOTH)
def test_options_mean_what_they_say_for_every_batch_order_and_split(saved, name: str, options: dict) -> None:
    """Catches a stop token drawn too early, one more or one less token before it may come, log-probs after temperature,
    nucleus or minimum, and an option that lets the batch in."""
    path, requests, how = saved(name), _requests(), _how(**options)
    expected = [_expected(path, request, how) for request in requests]
    runs = [_sample(path, requests, how, batch)[0] for batch in (1, 3, 10)]
    runs.append(_sample(path, requests[::-1], how, 3)[0][::-1])
    runs.append(_sample(path, requests[:4], how, 3)[0] + _sample(path, requests[4:], how, 4)[0])
    for answers in runs:
        for answer, right in zip(answers, expected, strict=True):
            assert (answer.id, answer.token_ids, answer.finish) == (right.id, right.token_ids, right.finish)
            assert (answer.logps is None) == (not how.logprobs)
            assert answer.logps is None or answer.logps == pytest.approx(right.logps, abs=1e-4)


def test_prompts_in_several_passes_give_the_same_answers(saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a part of the prompts that is put into another part's slots."""
    path, how = saved(BOTH[0]), _how(1.0)
    sampled = _sample(path, _requests(), how, 10)[0]
    monkeypatch.setattr(slots, "PREFILL_TOKENS", 20)
    assert _sample(path, _requests(), how, 10)[0] == sampled


def test_common_beginning_of_prompts_changes_no_answer(saved) -> None:
    """Catches a beginning that is computed at other positions or is not the one in the prompts, and slots that are
    given up for it."""
    path, how = saved(BOTH[0]), _how(1.0)
    shared = [1, 9, 8, 30, 31]
    tails: list[list[int]] = [[], [7], [7, 7], [20, 21, 22, 23]]
    requests = [Request(f"row{i}", shared + tail, row_seed(0, f"row{i}", "x")) for i, tail in enumerate(tails * 2)]
    answers, _, events = _sample(path, requests, how)
    assert answers == [_expected(path, request, how) for request in requests]
    assert not any("note" in event for event in events)


def test_ended_rows_give_their_place_and_figures_say_so(saved) -> None:
    """Catches rows that are computed after their end (a pass per token of the longest of a fixed batch), and figures
    that count them."""
    how, size = _how(1.0, stop_ids=frozenset(range(2, 10))), 4
    requests = [Request(f"row{i}", [i % 50 + 3], row_seed(0, f"row{i}", "x")) for i in range(40)]
    answers, job, events = _sample(saved(BOTH[0]), requests, how, size)
    lengths = [len(answer.token_ids) for answer in answers]
    fixed = sum(max(lengths[start : start + size]) for start in range(0, len(lengths), size))
    passes = sum(lengths) / job.figures["in_flight_mean"]
    assert sum(lengths) / size <= passes < 0.8 * fixed
    assert job.figures["tokens_per_second"] > 0
    assert job.figures["load_seconds"] < 0.5  # the model was in memory
    shown = [event["figures"] for event in events if event.get("figures")]
    assert all(0 <= figures["in flight"] <= size for figures in shown)
    assert [event["done"] for event in events][-1] == len(requests)
