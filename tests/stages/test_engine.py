"""The transformers engine: draws that belong to the row, distributions that are the model's, marked endings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from spin_core.config.chat import ChatSection
from spin_core.config.runtime import Runtime
from spin_core.engines import Request, Sampling
from spin_core.engines.decoding import Sampler
from spin_core.engines.requests import request, row_seed, sampling
from spin_core.engines.transformers_engine import sample
from spin_core.errors import BadInput
from spin_core.job import Job
from spin_core.modeling.encoding import Conversation, Encoded, encode
from spin_core.modeling.loading import load_chat, load_model
from spin_core.stages import demo_model

PROMPTS = [[{"role": "user", "content": "x" * n + " 12"}] for n in (1, 2, 3, 5, 8, 13, 21, 34, 4, 6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    demo_model.run({}, demo_model.Config(seed=5), Job(out=out, scratch=out))
    return out


def _job(**runtime) -> Job:
    return Job(out=Path(), scratch=Path(), runtime=Runtime(device="cpu", threads=1, **runtime))


@pytest.fixture
def prepare(model):
    """(requests, sampling) of the prompts."""
    chat = load_chat(model, ChatSection(max_prompt_length=48))

    def make(temperature: float = 1.0, top_p: float = 1.0, new: int = 10) -> tuple[list[Request], Sampling]:
        made = encode(chat, [Conversation(prompt, (), ()) for prompt in PROMPTS])
        requested = [request(f"row{i}", one.prompt, seed=7) for i, one in enumerate(made) if isinstance(one, Encoded)]
        assert len(requested) == len(PROMPTS)
        return requested, sampling(chat, temperature, top_p, new)

    return make


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answer_depends_neither_on_batch_nor_on_shard(model, prepare, temperature: float) -> None:
    """Catches draws from one generator for the batch, and padding that shifts positions."""
    requests, how = prepare(temperature)
    together = sample(model, requests, how, _job(generate_batch=10), "all")
    alone = [sample(model, [one], how, _job(), "one")[0] for one in requests]
    other = sample(model, requests[::-1], how, _job(generate_batch=3), "three")[::-1]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone] == [a.token_ids for a in other]
    assert [a.id for a in together] == [r.id for r in requests]
    assert len({tuple(a.token_ids) for a in together}) > 1


def test_greedy_tokens_are_the_models_arg_max(model, prepare) -> None:
    """Catches a mask, a position or a processor that changes the logits: checked against plain forward passes."""
    requests, how = prepare(0.0)
    net = load_model(model, "cpu")
    for one, answer in zip(requests, sample(model, requests, how, _job(), "greedy"), strict=True):
        ids = list(one.prompt)
        for token in answer.token_ids:
            with torch.no_grad():
                assert net(torch.tensor([ids])).logits[0, -1].argmax().item() == token
            ids.append(token)


def test_seed_and_stream_decide_the_draws(model, prepare) -> None:
    """Catches a seed that is not used, and evaluation that draws what generation drew."""
    requests, how = prepare()
    again = [Request(r.id, r.prompt, row_seed(8, r.id, "generate")) for r in requests]
    first, second = (sample(model, requested, how, _job(), "x") for requested in (requests, again))
    assert [a.token_ids for a in first] != [a.token_ids for a in second]
    assert row_seed(7, "row1", "generate") != row_seed(7, "row1", "evaluate") != row_seed(7, "row2", "evaluate")


def _counts(logits: list[float], how: Sampling, draws: int) -> torch.Tensor:
    sampler = Sampler(how)
    rows = [sampler.row(Request(str(i), [1], row_seed(0, str(i), "test"))) for i in range(draws)]
    sampler.draw(rows, torch.tensor([logits] * draws))
    return torch.bincount(torch.tensor([row.tokens[0] for row in rows]), minlength=len(logits)) / draws


def test_sampler_draws_the_tempered_distribution() -> None:
    """Catches a temperature that multiplies, and an inversion of the distribution that is off by one token."""
    logits, draws = [2.0, 0.0, -torch.inf, 1.0, -1.0], 20000
    expected = torch.softmax(torch.tensor(logits) / 0.7, -1)
    result = _counts(logits, Sampling(0.7, 1.0, 1, frozenset(), 0), draws)
    assert result[2] == 0
    assert (result - expected).abs().max() < 4 * 0.5 / draws**0.5  # four standard deviations


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    """Catches a nucleus that leaves out the token which crosses p, or keeps one more."""
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25])).tolist()
    assert (_counts(logits, Sampling(1.0, 0.7, 1, frozenset(), 0), 4000) > 0).tolist() == [False, True, False, True]
    assert (_counts(logits, Sampling(1.0, 0.8, 1, frozenset(), 0), 4000) > 0).tolist() == [False, True, True, True]


def test_top_k_keeps_that_many_before_the_nucleus_is_measured() -> None:
    """Catches one token too few or too many, and a nucleus of the whole distribution: of 0.5 and 0.25 alone the first
    is two thirds."""
    logits = torch.log(torch.tensor([0.1, 0.5, 0.15, 0.25])).tolist()
    for top_p, kept in ((1.0, [False, True, False, True]), (0.6, [False, True, False, False])):
        result = _counts(logits, Sampling(1.0, top_p, 1, frozenset(), 0, top_k=2), 4000)
        assert (result > 0).tolist() == kept
    assert (_counts(logits, Sampling(1.0, 1.0, 1, frozenset(), 0, top_k=9), 4000) > 0).all()


def test_answer_ends_at_a_stop_token_or_is_marked_as_cut(model, prepare) -> None:
    """Catches padding that is taken for answer, and a cut answer that looks finished."""
    requests, how = prepare()
    plain = sample(model, requests, how, _job(), "x")
    assert {(a.finish, len(a.token_ids)) for a in plain if a.finish == "length"} <= {("length", 10)}
    stop = next(a.token_ids[3] for a in plain if a.finish == "length")
    ending = Sampling(how.temperature, how.top_p, how.max_new_tokens, how.stop_ids | {stop}, how.pad_id)
    for before, after in zip(plain, sample(model, requests, ending, _job(), "x"), strict=True):
        ids = before.token_ids
        if stop in ids:
            assert after.token_ids == ids[: ids.index(stop) + 1]
            assert after.finish == "stop"
        else:
            assert after == before


def test_prompt_over_the_models_context_is_refused_by_its_row(model, prepare) -> None:
    """Catches positions past the end of the model's table, whose answers are noise."""
    requests, how = prepare(new=90)
    with pytest.raises(BadInput, match=r"row row7: .* context of 128"):
        sample(model, requests, how, _job(), "x")
