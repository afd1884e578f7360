"""`finetune.loss` in a profile: what each loss takes, and which scores it needs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from spin_core.config.finetune import Finetune
from spin_core.config.profile import Config, parse
from spin_core.errors import BadInput
from spin_core.store.keys import config_payload


def profile(finetune: dict, **changes: Any) -> Config:
    whole = {"model": {"path": "m"}, "dataset": {"path": "d"}, "iterations": 4, "finetune": finetune, **changes}
    return parse(whole, "mine.yaml")


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        (
            {"loss": "unpaired", "beta": 0.5},
            "beta is not used by loss unpaired, which has unpaired.a; leave beta out (--set finetune.beta= takes",
        ),
        ({"loss": "tspin", "beta": 0.5}, "beta is not used by loss tspin, which has tspin.alpha"),
        ({"loss": "dft", "beta": 0.5}, "beta is not used by loss dft, which has dft.tau"),
        (
            {"unpaired": {"w": 2}},
            "unpaired is not used by loss sigmoid; leave it out (--set finetune.unpaired= does), or set loss: unpaired",
        ),
        ({"loss": "tpaw", "alpha": {"base_share": 0.1}}, "alpha is not used by loss tpaw"),
        ({"loss": "hinge", "tspin": {"beta": 0.2}}, "tspin is not used by loss hinge"),
        ({"loss": "alpha", "tpaw": {"players": 2}}, "tpaw is not used by loss alpha"),
        ({"loss": "unpaired", "dft": {"tau": 2}}, "dft is not used by loss unpaired"),
        ({"loss": "dft", "length_normalised": True}, "length_normalised is not used by loss dft, which weighs whole"),
        ({"loss": "tspin", "engine_logps": True}, "engine_logps is not used by loss tspin with reference_free"),
        ({"loss": "tspin", "collation": "reference"}, "loss tspin does not go with collation: reference"),
        ({"loss": "dft", "collation": "reference"}, "loss dft does not go with collation: reference"),
    ],
)
def test_setting_that_the_loss_does_not_use_is_named(finetune: dict, message: str) -> None:
    """Catches a setting that changes nothing: its user would take the difference of two runs for its effect."""
    with pytest.raises(BadInput, match=re.escape(message)) as caught:
        profile(finetune)
    assert str(caught.value).startswith("mine.yaml: finetune: ")


@pytest.mark.parametrize(
    "finetune",
    [
        {"loss": "tspin", "length_normalised": True, "sft_weight": 0.1},
        {"loss": "tspin", "tspin": {"beta": 0}, "collation": "reference"},
        {"loss": "tpaw", "beta": 0.5, "collation": "reference", "length_normalised": True},
        {"loss": "alpha", "beta": 0.5, "length_normalised": True},
        {"loss": "unpaired", "collation": "reference", "lora": {"rank": 4}},
        {"loss": "dft", "sft_weight": 1, "dft": {"reference_free": True}},
        {"loss": "unpaired", "beta": 0.1, "tspin": {}},
    ],
)
def test_setting_that_the_loss_uses_is_taken(finetune: dict) -> None:
    """Catches a rule that refuses what composes, and one that minds a setting at its default (an override or a child
    process gives every field)."""
    part = profile(finetune).finetune
    assert Finetune(**part.model_dump()) == part


def test_settings_of_losses_are_in_no_older_key() -> None:
    """Catches a section that makes every finetune of an older store run again, or that is in no key at all."""
    names = {"unpaired", "tspin", "tpaw", "alpha", "dft"}
    assert not names & set(config_payload(Finetune()))
    own = config_payload(Finetune(loss="unpaired", unpaired={"b": 2.0}))
    assert own["unpaired"] == {"a": 1.0, "b": 2.0, "w": 1.0} and not names - {"unpaired"} & set(own)
    given, left_out = Finetune(loss="tspin", tspin={"alpha": 1.0}), Finetune(loss="tspin")
    assert config_payload(given) == config_payload(left_out)


SCORED: dict[str, tuple[dict, list[list[tuple[int, int]]]]] = {
    "sigmoid": ({}, [[(0, 0)], [(1, 0), (1, 1)], [(2, 1), (2, 2)]]),
    "unpaired": ({"loss": "unpaired"}, [[(0, 0)], [(1, 0), (1, 1)], [(2, 1), (2, 2)]]),
    "tspin": ({"loss": "tspin"}, [[], [], []]),
    "tspin, ratios": (
        {"loss": "tspin", "tspin": {"reference_free": False}},
        [[(0, 0)], [(1, 0), (1, 1), (1, 0)], [(2, 1), (2, 2), (2, 0)]],
    ),
    "tspin, ratios, no third answer": (
        {"loss": "tspin", "tspin": {"reference_free": False, "beta": 0}},
        [[(0, 0)], [(1, 0), (1, 1)], [(2, 1), (2, 2)]],
    ),
    "tpaw of two": (
        {"loss": "tpaw", "tpaw": {"players": 2}},
        [[(0, 0)], [(1, 0), (1, 1), (0, 0), (0, 1)], [(2, 1), (2, 2), (1, 1), (1, 2)]],
    ),
    "alpha": (
        {"loss": "alpha"},
        [[(0, 0)], [(1, 0), (1, 1), (0, 0), (0, 1)], [(2, 1), (2, 2), (0, 1), (0, 2)]],
    ),
    "alpha, no share": ({"loss": "alpha", "alpha": {"base_share": 0}}, [[(0, 0)], [(1, 0), (1, 1)], [(2, 1), (2, 2)]]),
    "dft": ({"loss": "dft"}, [[(0, 0)], [(0, 0), (1, 1)], [(1, 1), (2, 2)]]),
    "dft alone": ({"loss": "dft", "dft": {"reference_free": True}}, [[], [], []]),
}


@pytest.mark.parametrize("name", SCORED)
def test_only_the_scores_that_a_loss_names(name: str) -> None:
    """Catches a model or a pair set too many (a forward pass over all pairs each) or too few."""
    finetune, scores = SCORED[name]
    config = profile(finetune)
    assert [config.scored(t) for t in range(3)] == scores


def test_dft_passes_over_the_rows_once() -> None:
    """Catches a control that trains twice as long as the dft that it is beside: an example has all answers of a row."""
    assert [profile({"schedule_epochs": 2}).passes(t) for t in range(3)] == [2, 4, 4]
    assert [profile({"schedule_epochs": 2, "loss": "dft"}).passes(t) for t in range(3)] == [2, 2, 2]


LATER: dict[str, Any] = {"start": {"iteration": 2, "pairs": {1: "p"}}}


@pytest.mark.parametrize(
    ("finetune", "changes", "message"),
    [
        ({"loss": "alpha"}, {}, "start.iteration: 2 begins behind θ_0, which loss alpha mixes into the opponent"),
        ({"loss": "tspin"}, {}, "whose answers loss tspin reads; give start.pairs.0"),
        ({"loss": "dft"}, {}, "the models before θ_2 are not there; set history: 1"),
        (
            {},
            {"start": {"iteration": 2, "pairs": {0: "p", 1: "p"}}},
            "start.pairs.0: this run trains on the pairs of 1 to 3",
        ),
        ({}, {"overrides": {3: {"finetune": {"loss": "alpha"}}}}, r"finetune.loss \(iteration 3\)"),
    ],
)
def test_later_start_without_what_the_loss_reads_is_named(finetune: dict, changes: dict, message: str) -> None:
    """Catches a run that begins behind θ_0 and ends hours later at a model that nobody has."""
    with pytest.raises(BadInput, match=message):
        profile(finetune, **{**LATER, **changes})


def test_later_start_with_it_is_taken() -> None:
    """Catches pairs of iteration 0 that only the answers of θ_0 are read from, refused as not trained on."""
    profile({"loss": "tspin"}, start={"iteration": 2, "pairs": {0: "p", 1: "p"}})
    profile({"loss": "dft"}, start={"iteration": 2}, history=1)
    assert profile({"loss": "tpaw"}, **LATER).scored(2) == [(2, 1), (2, 2)], "no model is there before the first"


def test_override_changes_the_loss_of_one_iteration() -> None:
    """Catches scores of the profile's loss for an iteration of another."""
    config = profile({"loss": "tspin"}, overrides={0: {"finetune": {"loss": "sigmoid"}}})
    assert (config.scored(0), config.scored(1)) == ([(0, 0)], [])
