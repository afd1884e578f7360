"""Alarms of every loss over made-up histories: its rewards are not SPIN's, nor are the settings that it has."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

from spin_core.analysis.collapse import REMEDY
from spin_core.analysis.training_alarms import WEIGHT, alarms, remedies
from spin_core.config.choices import Loss
from spin_core.config.finetune import Finetune
from spin_core.training.objectives import LOSSES

Curve = Callable[[float], float]
OPPONENT = (-20.0, -10.0)  # nats of the real answer and of the generated one, of 20 tokens each
FORMS: list[dict[str, Any]] = [
    {},
    {"length_normalised": True},
    {"loss": "unpaired"},
    {"loss": "unpaired", "unpaired": {"a": 0.01, "b": 2}},
    {"loss": "tspin"},
    {"loss": "tspin", "tspin": {"alpha": 0.2}},
    {"loss": "tspin", "tspin": {"reference_free": False}},
    {"loss": "dft"},
    {"loss": "dft", "dft": {"reference_free": True}},
]


def history(part: Finetune, real: Curve, generated: Curve, start=OPPONENT, seed: int = 0) -> list[dict]:
    """A hundred steps; the curves give the nats that the answers have gained over the done part of the training."""
    draw, lines = random.Random(seed), []
    for step in range(100):
        logps = [s + curve(step / 99) + draw.gauss(0, 0.1) for s, curve in zip(start, (real, generated), strict=True)]
        weight = part.ratio_weight / (20 if part.per_token else 1)
        rewards = [weight * (s - (0 if part.rewards_logps else s0)) for s, s0 in zip(logps, start, strict=True)]
        lines.append({
            "pairs": 64, "rewards/real": rewards[0], "rewards/generated": rewards[1], "rewards/accuracies": 0.9,
            "rewards/margins": rewards[0] - rewards[1], "logps/real": logps[0], "logps/generated": logps[1],
        })  # fmt: skip
    return lines


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_fall_is_measured_from_where_the_rewards_of_the_loss_begin(form) -> None:
    """Catches a log-prob that is compared with 0, which it is always below: an alarm about real answers that lose a
    twentieth of what the margin gains; and none where the margin was wide before the training began. Both are not so
    by SPIN's rewards, and must not be by others. A collapse alarms, in rewards of any size."""
    part = Finetune(**form)
    (alarm,) = alarms(history(part, lambda done: -40 * done, lambda done: -190 * done), 100, part)
    assert "real answers become less likely" in alarm["text"] and "logps/real from −2" in alarm["text"]
    wide = history(part, lambda done: -20 * done, lambda done: -120 * done, (-20.0, -600.0))
    assert len(alarms(wide, 100, part)) == 1
    above = history(part, lambda done: 25 - 20 * done, lambda done: -120 * done, (-60.0, -10.0))
    assert len(alarms(above, 100, part)) == part.rewards_logps, "likelier than under the opponent, where it is known"
    for seed in range(5):
        little = history(part, lambda done: -8 * done, lambda done: -190 * done, seed=seed)
        assert not alarms(little, 100, part)
        assert not alarms(history(part, lambda done: 5 * done, lambda done: -190 * done, seed=seed), 100, part)
        assert not alarms(history(part, lambda done: -8 * done, lambda done: -8 * done, seed=seed), 100, part)


def test_forms_that_have_log_probs_as_rewards() -> None:
    """Catches a form whose rewards the alarms take for log-ratios: LOSSES says what they are."""
    ours, reference = torch.tensor([[-3.0, -5.0]]), torch.tensor([[[-2.0, -2.5]]])
    for form in FORMS:
        part = Finetune(**form)
        _, real, _ = LOSSES[part.loss](part, ours, reference, torch.ones(1, 2, dtype=torch.bool))
        assert part.rewards_logps == (real.item() == pytest.approx(-3.0 * part.ratio_weight)), form


def test_saturated_accuracy_is_no_matter_where_real_answers_teach_whatever_the_margin() -> None:
    """Catches "further steps learn little" about dft, whose first term is SFT's own."""
    for form in FORMS:
        part = Finetune(**form)
        lines = [{"pairs": 64, "rewards/accuracies": 1.0, "rewards/margins": 9.0}] * 100
        assert len(alarms(lines, 100, part)) == (part.loss != "dft"), form


def settings(text: str) -> list[str]:
    """The settings of finetune that a sentence names; a section's second name does not repeat `finetune.`."""
    return re.findall(r"(?:finetune\.|\b(?=tspin\.|dft\.))([a-z_]+(?:\.[a-z]+)?)", text)


@pytest.mark.parametrize("loss", get_args(Loss))
def test_remedy_names_settings_of_the_loss(loss: Loss) -> None:
    """Catches a remedy that the config refuses for this loss (`beta` where there is none), one that is set already,
    and a loss without a setting beside lr and the anchor."""
    part = Finetune(loss=loss)
    lr, weight, anchor = settings(remedies(part))
    assert (lr, anchor) == ("lr", "sft_weight") and "set finetune.sft_weight (for example 1)" in remedies(part)
    section, _, field = weight.partition(".")
    Finetune.model_validate({"loss": loss, section: {field: 0.5} if field else 0.5})
    assert weight in settings(REMEDY), "the gate, which does not know the loss, names those of all"
    assert remedies(Finetune(loss=loss, sft_weight=0.1)).endswith("raise finetune.sft_weight")


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        ({"loss": "sigmoid", "beta": 0.1}, {"beta": 0.2}),
        ({"loss": "hinge", "beta": 0.1}, {"beta": 0.2}),
        ({"loss": "tpaw", "beta": 0.1}, {"beta": 0.2}),
        ({"loss": "alpha", "beta": 0.1}, {"beta": 0.2}),
        ({"loss": "unpaired"}, {"unpaired": {"a": 2.0}}),
        ({"loss": "tspin"}, {"tspin": {"alpha": 2.0}}),
        ({"loss": "dft"}, {"dft": {"gamma": 0.5}}),
        ({"loss": "dft", "dft": {"reference_free": True}}, {"dft": {"reference_free": True, "gamma": 0.5}}),
    ],
    ids=str,
)
def test_remedy_pushes_learnt_answers_down_less(form, changed) -> None:
    """Catches a remedy that is turned round (τ of dft, which stands where others have β, would be)."""

    def push(settings: dict[str, Any]) -> float:
        part = Finetune.model_validate(settings)
        ours = torch.tensor([[-1.8, -11.8]], requires_grad=True)
        reference = torch.tensor([[[-2.0, -2.1]]])
        losses, _, _ = LOSSES[part.loss](part, ours, reference, torch.ones(1, 2, dtype=torch.bool))
        losses.sum().backward()
        assert ours.grad is not None
        return float(ours.grad[0, 1])

    assert {name for name in WEIGHT if name == form["loss"]} == {form["loss"]} - {"sigmoid", "hinge", "tpaw", "alpha"}
    assert 0 <= push({**form, **changed}) < push(form)
    if form == {"loss": "dft"}:
        assert push({"loss": "dft", "dft": {"tau": 2.0}}) > push(form)
