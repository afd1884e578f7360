"""What a training can at best do, from the opponent's log-probs of its pairs."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from spin_core.analysis.forecast import MAP, decoder_of, forecast, sentences
from spin_core.config.choices import Loss
from spin_core.config.finetune import Finetune
from spin_core.config.generate import Decoding


def test_forecast_counts_the_pairs_that_can_teach() -> None:
    """Catches identical pairs counted twice (their log-probs may differ by rounding), a preference that is turned
    round, and an entropy per answer instead of per token or with the wrong sign."""
    logps = [(-2.0, -2.0001), (-1.0, -3.0), (-4.0, -1.0), (-4.0, -2.0)]
    made = forecast(logps, [True, False, False, False], tokens=16)
    assert made == {"identical": 0.25, "preferred": 0.25, "entropy": pytest.approx(8.0001 / 16)}
    (said,) = sentences({"forecast": made})
    assert "25.0 % are identical, and in 25.0 % the opponent already" in said and "0.500 nats a token" in said
    assert "At best 50.0 % of the pairs teach" in said


def test_iteration_that_can_teach_little_is_said_to_be_unlikely_to_pay() -> None:
    """Catches a threshold on identical pairs alone, and a record from before forecasts that ends a plan."""
    few = {"identical": 0.5, "preferred": 0.46, "entropy": 0.01}
    said, warning = sentences({"forecast": few})
    assert "At best 4.0 %" in said and warning.startswith("This iteration is unlikely to pay")
    assert len(sentences({"forecast": {**few, "preferred": 0.44}})) == 1
    assert sentences({}) == sentences({"forecast": None}) == sentences({"forecast": {"identical": "x"}}) == []


DRAWS = {"greedy": Decoding(temperature=0), "T = 0.3": Decoding(temperature=0.3), "T = 1": Decoding()}


def test_forecast_names_the_nearest_situation_that_was_measured() -> None:
    """Catches a situation of another objective or decoder, the farthest one, and figures of another row: each row of
    the map is its own nearest. Catches a map that the package does not have, or without an objective of the profile."""
    rows = json.loads(MAP.read_text(encoding="utf-8"))
    losses = {*get_args(Loss)}
    assert {row["objective"].partition(",")[0] for row in rows} == losses
    assert len({row["situation"] for row in rows}) == 5 and {row["decoder"] for row in rows} == {*DRAWS}
    for row in rows:
        loss, _, weight = row["objective"].partition(", sft_weight ")
        part = Finetune.model_validate({"loss": loss, "sft_weight": float(weight or 0)})
        own = {name: row[name] for name in ("identical", "preferred", "entropy")}
        said = sentences({"forecast": own}, part, DRAWS[row["decoder"]])[-1]
        assert said.startswith("Nearest of the situations") and repr(row["situation"]) in said
        assert f"by {row['gain'][0]:+.3f}" in said and said.endswith(f"SFT changed it by {row['sft']:+.3f}.")


@pytest.mark.parametrize(
    ("draws", "like"),
    [
        (Decoding(temperature=0.7, top_p=0.9), "T = 0.3"),
        (Decoding(top_k=20), "T = 0.3"),
        (Decoding(temperature=1.5), "T = 1"),
    ],
)
def test_decoder_of_the_map_that_is_most_like_the_runs(draws: Decoding, like: str) -> None:
    """Catches a nucleus that passes for the model's own distribution, and a high temperature for a low one."""
    assert decoder_of(draws) == like


@pytest.mark.parametrize(("identical", "preferred"), [(0.05, 0.6), (0.3, 0.5), (0.1, 0.05), (0.9, 0.02)])
@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
def test_nearest_is_by_both_shares(draws: Decoding, identical: float, preferred: float) -> None:
    """Catches a nearest situation by one share alone."""
    own = {"identical": identical, "preferred": preferred, "entropy": 1.0}
    rows = [row for row in json.loads(MAP.read_text(encoding="utf-8")) if row["objective"] == "sigmoid"]
    away = {
        row["situation"]: (row["identical"] - identical) ** 2 + (row["preferred"] - preferred) ** 2
        for row in rows
        if DRAWS[row["decoder"]] == draws
    }
    assert repr(min(away, key=away.__getitem__)) in sentences({"forecast": own}, Finetune(), draws)[-1]


def test_case_of_the_map_that_is_not_the_runs_own_is_said() -> None:
    """Catches a nucleus or an anchor of another weight that passes for what was measured."""
    known = {"forecast": {"identical": 0.1, "preferred": 0.2, "entropy": 1.0}}
    draws = Decoding(temperature=0.7, top_p=0.9)
    said = sentences(known, Finetune(sft_weight=3), draws)[-1]
    assert said.endswith(" Here the opponent is sampled at temperature 0.7, top-p 0.9 and sft_weight is 3.")
    assert "Here" not in sentences(known, Finetune(sft_weight=1), Decoding())[-1]


def test_no_situation_is_named_where_nothing_is_known_of_loss_or_decoder() -> None:
    """Catches a gain that is promised to a loss with `sft_weight` that was not measured, or to an unknown decoder."""
    known = {"forecast": {"identical": 0.1, "preferred": 0.2, "entropy": 1.0}}
    assert len(sentences(known, Finetune(loss="tspin", sft_weight=1), Decoding())) == 1
    assert len(sentences(known, Finetune(), None)) == len(sentences(known)) == 1
    assert len(sentences(known, Finetune(sft_weight=0.5), Decoding())) == 2
