"""Stop strings: an answer ends at the token that completes one, whatever pieces its text comes in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM, PreTrainedTokenizerBase

from spin_core.config.runtime import Runtime
from spin_core.engines import Request, Sampling
from spin_core.engines.decoding import Sampler
from spin_core.engines.requests import row_seed
from spin_core.engines.transformers_engine import sample
from spin_core.job import Job
from spin_core.modeling.loading import load_tokenizer
from spin_core.stages import demo_model

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer"


def _text(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _first_end(tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: tuple[str, ...]) -> int:
    """Tokens up to the first at which the decoded answer contains one of the strings (by looking at all of it)."""
    for n in range(1, len(tokens) + 1):
        if any(text in _text(tokenizer, tokens[:n]) for text in stop):
            return n
    return len(tokens)


@pytest.fixture(scope="module", params=["slots", "generate"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model and character tokenizer; for `generate` a Mistral with a short window in its place."""
    out = tmp_path_factory.mktemp("model")
    demo_model.run({}, demo_model.Config(seed=5), Job(out=out, scratch=out))
    if request.param == "generate":
        torch.manual_seed(5)
        shape = MistralConfig(
            vocab_size=len(load_tokenizer(out)), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, sliding_window=8,
            initializer_range=0.2,
        )  # fmt: skip
        MistralForCausalLM(shape).save_pretrained(out)
    return out


@pytest.mark.parametrize("batch", [1, 3, 12])
def test_answer_ends_at_the_token_that_completes_a_stop_string(model: Path, batch: int) -> None:
    """Catches a stop string that is not looked for, ends its row a token late, or ends other rows as well."""
    tokenizer = load_tokenizer(model)
    job = Job(out=model, scratch=model, runtime=Runtime(device="cpu", threads=1, generate_batch=batch))
    requests = [Request(f"row{i}", [7 + i, 9], row_seed(0, f"row{i}", "x")) for i in range(12)]
    how = Sampling(1.0, 1.0, 20, frozenset([tokenizer.eos_token_id]), 0)
    plain = sample(model, requests, how, job, "x")
    texts = [_text(tokenizer, answer.token_ids) for answer in plain]
    stop = (texts[0][5:7], texts[1][9:12], texts[2][0], "never drawn by chance")
    stopped = sample(model, requests, Sampling(1.0, 1.0, 20, how.stop_ids, 0, stop=stop), job, "x")
    for answer, before in zip(stopped, plain, strict=True):
        end = _first_end(tokenizer, before.token_ids, stop)
        assert answer.token_ids == before.token_ids[:end]
        result = any(text in _text(tokenizer, answer.token_ids) for text in stop)
        assert answer.finish == ("stop" if result else before.finish)
    assert len({len(answer.token_ids) for answer in stopped}) > 3


STOPS = ["\n\nQ:", "é", "☃ snow", "☃☃☃☃☃", " the end", "l", "<|end|>x", "7"]


@pytest.mark.parametrize("stop", STOPS)
def test_tail_matches_what_the_full_answer_holds(stop: str) -> None:
    """Catches a tail that is too short for a string of many tokens, halves of a character, special tokens between the
    string's parts (they are not in the text), and spaces that only the start of a text loses."""
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN)
    special = tokenizer.all_special_ids[0]
    ids = tokenizer(f"Well, 12 naïve 雪 snow{stop[:-1]} or ☃ sno{stop} and more {stop}", add_special_tokens=False)
    for every in (0, 1, 2):  # after how many tokens a special one follows; 0: none
        tokens = [t for i, token in enumerate(ids.input_ids) for t in [token] + [special] * (every and i % every == 0)]
        sampler = Sampler(Sampling(0.0, 1.0, len(tokens), frozenset(), 0, stop=(stop,)), tokenizer)
        row = sampler.row(Request("row", [1], 5))
        while not row.finish:
            logits = torch.full((1, len(tokenizer)), -1.0)
            logits[0, tokens[len(row.tokens)]] = 1.0
            sampler.draw([row], logits)
        assert len(row.tokens) == _first_end(tokenizer, tokens, (stop,)) < len(tokens)
        assert row.finish == "stop"
