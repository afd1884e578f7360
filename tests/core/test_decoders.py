"""The opponent's decoder, how the model is deployed, and what a run says of the two."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spin_core.analysis.decoders import kinds, measured, name_of, sentences
from spin_core.config.evaluate import Evaluate
from spin_core.config.generate import Decoding, Generate
from spin_core.config.profile import load_profile, parse
from spin_core.errors import BadInput
from spin_core.runtime.child import Children
from spin_core.sources.deployment import decoding_of
from spin_core.sources.resolve import Ref
from spin_core.store.keys import config_payload
from spin_core.store.store import Store
from tasks.runner.planning import Planner
from tasks.runner.run import Run

SERVED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 2}
LIKE_SERVED = Decoding(temperature=0.6, top_p=0.9)


def _profile(**sections):
    return parse({"model": {"path": "m"}, "dataset": {"path": "d"}, **sections}, "p")


def _model(folder: Path, settings: object) -> Path:
    folder.mkdir()
    (folder / "generation_config.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SERVED, LIKE_SERVED),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, Decoding(temperature=0.7, top_p=0.8, top_k=20)),
        ({"do_sample": True}, Decoding()),
        ({"temperature": 0.6}, Decoding(temperature=0.6)),
        ({"do_sample": False, "temperature": 0.6, "top_p": None}, Decoding(temperature=0.0)),
        ({"eos_token_id": 2, "transformers_version": "4.35.0"}, None),
        ("[1]", "not a JSON object"),
        ({"do_sample": True, "temperature": -1}, "temperature"),
        ({"do_sample": True, "top_p": "much"}, "top_p"),
    ],
)  # fmt: skip
def test_deployment_is_what_the_generation_config_says(tmp_path: Path, settings, expected) -> None:
    """Catches sampling flags that a file sets aside (do_sample: false), a null that counts, an end token taken for a
    statement about sampling, and a traceback for a file that is none."""
    model = _model(tmp_path / "m", settings)
    if isinstance(expected, str):
        with pytest.raises(BadInput, match=expected) as caught:
            decoding_of(model)
        assert str(model) in str(caught.value)
    else:
        assert decoding_of(model) == expected
    assert decoding_of(tmp_path) is None


def test_deployed_decoder_is_numbers_in_the_key_and_an_error_without_them(tmp_path: Path) -> None:
    """Catches a key that says `deployed`, under which two models' answers would be one, a step whose settings do not
    survive the way to its process, a model that says nothing sampled at temperature 1, and a penalty that users get and
    no answer here has, unsaid."""
    part = Generate(decoder="deployed", max_new_tokens=9)
    made = part.drawing_as(LIKE_SERVED)
    same = Generate(temperature=0.6, top_p=0.9, max_new_tokens=9)
    assert config_payload(made) == config_payload(same) and Generate.model_validate(made.model_dump()) == made
    greedy = part.drawing_as(Decoding(temperature=0.0))
    assert config_payload(greedy) == config_payload(Generate(decoder="greedy", max_new_tokens=9))
    assert Generate(temperature=0.3).drawing_as(LIKE_SERVED) == Generate(temperature=0.3)

    def deployment(settings: dict, gate: str = "auto", **generate) -> Decoding | None:
        config = _profile(generate=generate, gate={"metric": gate})
        run = Run(config, Store(tmp_path / "store"), Children(0), tmp_path, Planner())
        return run.deployment(Ref("0" * 64, path=str(_model(tmp_path / str(len([*tmp_path.iterdir()])), settings))))

    assert deployment(SERVED, decoder="deployed") == deployment(SERVED) == LIKE_SERVED
    assert deployment({}) is None
    planner = Planner()
    run = Run(_profile(), Store(tmp_path / "store"), Children(0), tmp_path, planner)
    beside = {**SERVED, "repetition_penalty": 1.05, "num_beams": 1, "min_p": None}
    run.deployment(Ref("0" * 64, path=str(_model(tmp_path / "beside", beside))))
    (note,) = planner.notes
    assert "repetition_penalty 1.05, which no engine" in note and "num_beams" not in note and "min_p" not in note
    with pytest.raises(BadInput, match=r"generate\.decoder: deployed: .* take greedy .* or sampled"):
        deployment({}, decoder="deployed")
    with pytest.raises(BadInput, match=r"generate\.attempts: .* leave attempts out"):
        deployment({"do_sample": False}, decoder="deployed", attempts=2)
    # Before hours of training, not by the first gate:
    assert deployment(SERVED, gate="repetition/deployed") == LIKE_SERVED
    with pytest.raises(BadInput, match=r"repetition/deployed: the model does not say how .* take repetition/greedy"):
        deployment({}, gate="repetition/deployed")
    with pytest.raises(BadInput, match=r"is deployed greedy, which is measured as greedy; take repetition/greedy"):
        deployment({"do_sample": False}, gate="repetition/deployed")


def test_override_may_change_the_decoder() -> None:
    """Catches an override that contradicts what the profile never said: the decoder that follows from temperature."""
    config = _profile(
        iterations=4,
        generate={"temperature": 0.5},
        overrides={1: {"generate": {"temperature": 0}}, 2: {"generate": {"temperature": 1.0}}},
    )
    assert [config.at(t).generate.decoder for t in range(4)] == ["sampled", "greedy", "sampled", "sampled"]
    plain = _profile(iterations=2, overrides={1: {"generate": {"decoder": "greedy"}}})
    assert [plain.at(t).generate.temperature for t in range(2)] == [1.0, 0.0]
    with pytest.raises(BadInput, match=r"overrides\.1\.generate.*greedy contradicts temperature: 0\.5"):
        _profile(iterations=2, generate={"decoder": "greedy"}, overrides={1: {"generate": {"temperature": 0.5}}})


def test_evaluate_measures_every_temperature_once() -> None:
    """Catches a deployment that is measured twice (it may be greedy, or temperature 1), a setting that changes no
    figure and moves a key, and kinds in the order of a dict."""
    part = Evaluate(temperatures=[0.5, 0, 1, 0.3])
    assert config_payload(part)["temperatures"] == [0.3, 0.5]
    assert {"temperatures", "deployed"}.isdisjoint(config_payload(Evaluate(temperatures=[1.0])))
    made = measured(part, LIKE_SERVED)
    assert [*made] == ["greedy", "sampled", "t0.3", "t0.5", "deployed"] and made["t0.3"] == Decoding(temperature=0.3)
    for known in (Decoding(), Decoding(temperature=0.0), Decoding(temperature=0.3), None):
        assert "deployed" not in measured(part, known)
    assert measured(Evaluate(answers=False), LIKE_SERVED) == {}
    metrics = {f"truncated/{kind}": 0.0 for kind in reversed(made)}
    metrics |= {"deployed/temperature": 0.6, "deployed/top_p": 0.9, "deployed/top_k": 0.0}
    assert kinds(metrics) == [*made]
    names = ["greedy", "temperature 1", "temperature 0.3", "temperature 0.5", "deployed, temperature 0.6, top-p 0.9"]
    assert [name_of(kind, metrics) for kind in made] == names
    with pytest.raises(ValueError, match="between 0 and 10"):
        Evaluate(temperatures=[-1])


GREEDY_SERVED = Decoding(temperature=0.0)
JUDGED = {"evaluate": {"exact_match": "answer"}}


@pytest.mark.parametrize(
    ("sections", "deployed", "warning"),
    [
        ({}, None, ""),
        ({}, GREEDY_SERVED, "the model is deployed greedy (generation_config.json)"),
        ({}, LIKE_SERVED, "set generate.decoder: deployed"),
        ({}, Decoding(), ""),
        (JUDGED, None, "the best model is chosen by greedy answers"),
        ({**JUDGED, "gate": {"metric": "exact_match/sampled"}}, None, ""),
        ({**JUDGED, "gate": {"metric": "nll/real"}}, None, ""),
        ({**JUDGED, "generate": {"decoder": "greedy"}}, None, ""),
        ({**JUDGED, "generate": {"decoder": "deployed"}}, LIKE_SERVED, ""),
        ({"generate": {"temperature": 0.7}}, GREEDY_SERVED, ""),
        ({"iterations": 2, "overrides": {1: {"generate": {"decoder": "greedy"}}}}, GREEDY_SERVED, ""),
    ],
)
def test_run_says_its_decoders_and_warns_where_they_differ_in_what_matters(sections, deployed, warning) -> None:
    """Catches a run that samples at temperature 1 for users who get decoded answers and does not say that SPIN can then
    correct nothing; and a warning to those who play decoded, or of whom nobody knows how they are served."""
    said = sentences(_profile(**sections), deployed)
    assert said[0].startswith("The opponent's answers are ") and (str(deployed) in said[0] or not deployed)
    assert len(said) == 1 + bool(warning) and warning in said[-1]


def test_deployment_that_was_not_read_is_not_made_up() -> None:
    """Catches a plan without the hub that calls a deployed decoder sampled at temperature 1, and warns of it."""
    (said,) = sentences(_profile(**JUDGED, generate={"decoder": "deployed"}), None)
    assert said.startswith("The opponent's answers are drawn as the model's generation_config.json says.")


def test_profile_of_the_paper_decodes_greedily() -> None:
    """Catches `zephyr-7b` at temperature 1, where SPIN is close to SFT: the paper's runs drew greedily."""
    for name in ("zephyr-7b", "zephyr-7b-lora", "zephyr-7b-paper"):
        config, _ = load_profile(name)
        assert {config.at(t).generate.decoder for t in range(config.iterations)} == {"greedy"}, name
        assert config.generate.temperature == 0
