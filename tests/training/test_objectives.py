"""The losses of `finetune.loss`: their numbers, their gradients, what they are to first order, and what they read."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from loss_data import CASES, SETTINGS, part_of, played, trees
from torch import Tensor
from training_data import ended_and_resumed, finetune_config, job_at, metrics_of

from spin_core.config.finetune import Finetune
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.modeling.collate import Tokens, further, read_groups
from spin_core.modeling.examples import read_examples, reference_logps
from spin_core.modeling.loading import load_model
from spin_core.modeling.logprobs import Policy
from spin_core.modeling.loss import discriminative_loss, spin_loss, team_loss, triplet_loss, unpaired_loss
from spin_core.modeling.packing import tokens_of
from spin_core.stages import finetune
from spin_core.training.objectives import LOSSES, SpinPairs

__all__ = ["played", "trees"]  # fixtures
WIDTHS = {"tspin": 3, "dft": 4}
"""Answers of an example: one that lacks a further answer is among them."""


def answer(labels: int) -> Tokens:
    return Tokens(np.arange(3 + labels, dtype=np.int32), 3)


def made_up(name: str, **more) -> tuple[SpinPairs, Tensor]:
    """Five examples of the loss, the last without its further answers, and the policy's log-probs [S] in float64."""
    part, width = part_of(name, **more), WIDTHS.get(name.partition(" ")[0], 2)
    draws = torch.Generator().manual_seed(3)
    counts = [width] * 4 + [2]
    examples = [tuple(answer(2 + (i + j) % 5) for j in range(n)) for i, n in enumerate(counts)]
    logps = -3 - 12 * torch.rand(sum(counts), generator=draws, dtype=torch.float64)
    models = 0 if part.reference_free else {"tpaw": 3, "alpha": 2}.get(part.loss, 1)
    reference = torch.zeros(5, models, width, dtype=torch.float64)
    for i, own in enumerate(logps.split(counts)):
        reference[i, :, : len(own)] = own + torch.randn(models, len(own), generator=draws, dtype=torch.float64)
    return SpinPairs(examples, reference, part), logps


MORE = ({}, {"sft_weight": 0.7}, {"length_normalised": True})


@pytest.mark.parametrize(
    ("name", "more"), [(name, more) for name in SETTINGS for more in MORE[: 2 if name.startswith("dft") else 3]]
)
def test_gradient_is_that_of_finite_differences(name: str, more: dict) -> None:
    """Catches a loss of which a part is detached, an answer that reaches another one's place, a NaN from an answer
    that is not there, and an anchor or a mean per token that one of the losses loses."""
    learned, logps = made_up(name, **more)

    def loss(values: Tensor) -> Tensor:
        return learned.sums(values, [0, 1, 2, 3, 4], torch.tensor([1.0, 0.5, 1.0, 2.0, 1.0], dtype=torch.float64))[0]

    assert torch.autograd.gradcheck(loss, logps.requires_grad_(), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SETTINGS)
def test_examples_of_several_processes_sum_to_the_batch(name: str) -> None:
    """Catches a loss that depends on what else is in its pass (a softmax over the wrong axis, a width of the batch), so
    on the number of processes, and one whose filled-up example counts."""
    learned, logps = made_up(name)
    counts = [len(group) for group in learned.examples]
    parts = logps.split(counts)
    whole, figures = learned.sums(logps, list(range(5)), torch.ones(5))
    split = [learned.sums(torch.cat([parts[i] for i in own]), own, torch.ones(len(own))) for own in ([4, 0], [3, 1, 2])]
    split.append(learned.sums(parts[0], [0], torch.zeros(1)))
    torch.testing.assert_close(sum(loss for loss, _ in split), whole)
    for key, value in figures.items():
        torch.testing.assert_close(sum(one[key] for _, one in split), value)
        assert not value.requires_grad


def test_unpaired_and_dft_agree_with_public_code(golden: Callable) -> None:
    """Catches a sign, a weight in the wrong place, a mean taken as a sum, and γ left out of the gradient."""
    known = golden("objectives.json")
    for case in known["unpaired"]:
        real, generated = (torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in case["policy"])
        theirs = [torch.tensor(one, dtype=torch.float64) for one in case["opponent"]]
        losses = unpaired_loss(real - theirs[0], generated - theirs[1], case["a"], case["b"], case["w"])
        losses.sum().backward()
        compared = zip((losses, real.grad, generated.grad), (case["losses"], *case["gradients"]), strict=True)
        for got, expected in compared:
            torch.testing.assert_close(got.detach(), torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)
    for case in known["dft"]:
        logps = [torch.tensor(case[side], dtype=torch.float64, requires_grad=True) for side in ("real", "generated")]
        real, generated = logps
        if case["reference_free"]:
            real, generated = (one / torch.tensor(n) for one, n in zip(logps, case["labels"], strict=True))
        reference = torch.tensor(case["reference"]).double() if "reference" in case else torch.zeros_like(generated)
        there = torch.ones_like(generated, dtype=torch.bool)
        discriminative_loss(real, generated, reference, there, case["tau"], case["gamma"]).sum().backward()
        for one, expected in zip(logps, case["gradients"], strict=True):
            torch.testing.assert_close(one.grad, torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)


def test_space_is_unpaired_with_its_mu() -> None:
    """Catches b = ln μ for −ln μ, and a weight that is 1/μ: SPACE's σ_μ(x) is 1/(1 + μ·e^(−x))."""
    mu, real, generated = 2.5, 0.8, -1.3
    own = -math.log(1 / (1 + mu * math.exp(-real))) - mu * math.log(1 - 1 / (1 + mu * math.exp(-generated)))
    assert unpaired_loss(torch.tensor(real), torch.tensor(generated), 1.0, -math.log(mu), mu).item() == pytest.approx(
        own
    )


def test_dft_of_a_row_without_an_older_answer_is_dft_of_those_it_has() -> None:
    """Catches a mean over all columns, also those that a row lacks."""
    real, generated = torch.tensor([-9.0, -8.0]).double(), torch.tensor([[-7.0, -6.0], [-5.0, 0.0]]).double()
    there, of = torch.tensor([[True, True], [True, False]]), torch.tensor([[-6.5, -7.0], [-4.0, 0.0]]).double()
    for gamma in (1.0, 0.85):
        both = discriminative_loss(real, generated, of, there, 1.0, gamma)
        alone = discriminative_loss(real[1:], generated[1:, :1], of[1:, :1], there[1:, :1], 1.0, gamma)
        torch.testing.assert_close(both[1:], alone)


def log_sigmoid(z: float) -> float:
    return -math.log1p(math.exp(-z))


def test_triplet_is_spin_without_a_reference_and_a_second_game() -> None:
    """Catches the second term between y and y₀, its sign, and β on the first."""
    real, generated, first = (torch.tensor([value]).double() for value in (-7.0, -5.5, -9.0))
    nothing = torch.zeros(1).double()
    one, *_ = spin_loss(real, generated, nothing, nothing, 0.4)
    torch.testing.assert_close(triplet_loss(real, generated, None, 0.4, 0.1), one)
    both = triplet_loss(real, generated, first, 0.4, 0.1).item()
    assert both == pytest.approx(-log_sigmoid(0.4 * -1.5) - 0.1 * log_sigmoid(0.4 * 3.5))


def test_team_weighs_the_player_that_is_beaten_least_and_lifts_what_fell() -> None:
    """Catches a softmax of the other sign, a lift of what rose, and weights that the gradient goes through."""
    real, generated = [[0.5, -0.2]], [[0.1, -1.0]]
    margins = [0.4, 0.8]
    weights = [math.exp(-0.5 * one) for one in margins]
    weights = [one / sum(weights) for one in weights]
    own = -weights[0] * log_sigmoid(0.5 - 0.1) - weights[1] * log_sigmoid(6 * -0.2 + 1.0)
    given = torch.tensor(real).double().requires_grad_()
    loss, got = team_loss(given, torch.tensor(generated).double(), 6.0, 0.5)
    assert loss.item() == pytest.approx(own)
    assert got[0].tolist() == pytest.approx(weights)
    loss.sum().backward()
    slopes = [-weights[0] / (1 + math.exp(0.4)), -6 * weights[1] / (1 + math.exp(-0.2))]
    assert given.grad is not None and given.grad[0].tolist() == pytest.approx(slopes)


def test_alpha_is_spin_at_no_share_and_at_one_against_the_base() -> None:
    """Catches the shares swapped, and a base that is not the last model that scored."""
    learned, logps = made_up("alpha")

    def losses(reference: Tensor, **changes) -> float:
        part = Finetune(**{"beta": 0.3, **changes})
        return SpinPairs(learned.examples, reference, part).sums(logps, [0, 1, 2, 3, 4], torch.ones(5))[0].item()

    def mixed(share: float) -> float:
        return losses(learned.reference, loss="alpha", alpha={"base_share": share})

    assert mixed(0.0) == pytest.approx(losses(learned.reference[:, :1]))
    assert mixed(1.0) == pytest.approx(losses(learned.reference[:, 1:]))
    assert losses(learned.reference[:, :1], loss="alpha") == pytest.approx(mixed(0.0)), "at iteration 0 θ_t is θ_0"


def first_order(part: Finetune, converged: bool) -> tuple[Tensor, Tensor]:
    """Expected gradients at θ_t of a loss and of SFT, for a policy that is a softmax over seven answers: y from the
    data, y′ from θ_t itself, each weighed by its probability, so that nothing is drawn. `converged`: θ_t is the data's
    distribution."""
    draws = torch.Generator().manual_seed(1)
    data = torch.softmax(torch.randn(7, generator=draws, dtype=torch.float64), 0)
    other = torch.randn(7, generator=draws, dtype=torch.float64)
    theta = (data.log() if converged else other).requires_grad_()
    logp = torch.log_softmax(theta, 0)
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    ours = logp[pairs]
    reference = ours.detach()[:, None]
    losses, *_ = LOSSES[part.loss](part, ours, reference, torch.ones_like(ours, dtype=torch.bool))
    weights = data[pairs[:, 0]] * logp.detach().exp()[pairs[:, 1]]
    (own,) = torch.autograd.grad((losses * weights).sum(), theta, retain_graph=True)
    (sft,) = torch.autograd.grad(-(data * logp).sum(), theta)
    return own, sft


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"loss": "sigmoid", "beta": 0.4}, 0.4 / 2),
        ({"loss": "hinge", "beta": 0.4}, 0.4),
        ({"loss": "unpaired", "unpaired": {"a": 0.4}}, 0.4 / 2),
        ({"loss": "unpaired", "unpaired": {"a": 0.4, "b": 2.0}}, 0.4 / (1 + math.exp(2.0))),
        ({"loss": "alpha", "beta": 0.4}, 0.4 / 2),
        ({"loss": "tpaw", "beta": 0.4}, 6 * 0.4 / 2),
        ({"loss": "dft"}, 1.0),
        ({"loss": "tspin"}, None),
        ({"loss": "dft", "dft": {"reference_free": True}}, None),
    ],
    ids=["sigmoid", "hinge", "unpaired", "unpaired, b", "alpha", "tpaw", "dft", "tspin", "dft alone"],
)
def test_at_the_opponent_it_is_sft_to_first_order_or_not(settings: dict, scale: float | None) -> None:
    """Catches a claim of docs/objectives.md that is not so: with answers drawn at temperature 1 from θ_t, the expected
    gradient at θ_t is SFT's times `scale`, so none where SFT has converged; T-SPIN and the reference-free DFT still
    move there."""
    (own, sft), (still, nothing) = (first_order(Finetune(**settings), converged) for converged in (False, True))
    assert nothing.norm() < 1e-12 < sft.norm()
    if scale is None:
        assert still.norm() > 5e-3
    else:
        torch.testing.assert_close(own, scale * sft)
        assert still.norm() < 1e-12


def test_third_answer_is_that_of_the_same_row(trees: list[Path], tmp_path: Path) -> None:
    """Catches answers joined by their place (a row that one set lacks shifts all behind it), a third answer of pairs
    whose own is the same, a row without one that is not said, and lengths that disagree with what is read."""
    events: list[dict] = []
    groups = read_examples(part_of("tspin"), trees[1:], trees[0], [False, False], job_at(tmp_path, events=events))
    first = {id: group[1] for id, group in zip(ids(trees[0]), read_groups(trees[:1], "train", 1024), strict=True)}
    assert len(groups) == 19
    for id, group in zip(groups.ids, groups, strict=True):
        assert np.array_equal(group[2].ids, first[id].ids)
    assert not events
    own = read_examples(part_of("tspin"), trees[:2], trees[0], [True, False], job_at(tmp_path / "own"))
    assert [len(group) for group in own] == [2] * 10 + [3] * 9
    assert own.lengths().tolist() == [[*map(len, group), *[0] * (3 - len(group))] for group in own]
    assert own.packed().tolist() == [tokens_of(group) for group in own]
    assert own.targets().sum() == sum(one.targets for group in own for one in group)
    lacking = read_examples(part_of("tspin"), trees[2:], trees[1], [False], job_at(tmp_path / "2", events=events))
    assert [len(group) for group in lacking] == [2 if i == 3 else 3 for i in range(10)]
    assert "1 of 10 pairs have no answer of θ_0" in events[-1]["note"]


def ids(tree: Path) -> list[str]:
    return read_groups([tree], "train", 1024).ids


def test_dft_has_each_row_once_with_all_its_answers_and_their_scores(trees: list[Path], tmp_path: Path) -> None:
    """Catches an example for each pair, an older answer's score in the place of another's where a row lacks one, and
    answers to rows without a pair that go without a word."""
    part, events = part_of("dft"), []
    groups = read_examples(part, trees, None, [False] * 3, job_at(tmp_path, events=events))
    assert [len(group) for group in groups] == [3 if i == 3 else 4 for i in range(10)]
    scores = [np.array([[-100 * i - row, -100 * i - row - 50] for row in map(number, ids(trees[i]))]) for i in range(3)]
    reference = reference_logps(part, groups, [scores])[:, 0]
    assert reference[2].tolist() == [-202, -252, -152, -52]
    assert reference[3].tolist() == [-203, -253, -53, 0]
    assert not events
    read_examples(part, [trees[0], trees[1]], None, [False] * 2, job_at(tmp_path / "2", events=events))
    assert "1 answers of earlier iterations are to rows without a pair" in events[-1]["note"]


def number(id: str) -> int:
    return int(id, 16)


def test_packed_groups_of_three_answers_have_the_log_probs_of_each_alone(theta: Path, trees: list[Path]) -> None:
    """Catches a third answer that sees the second, and costs of unlike groups that do not add up."""
    groups = read_groups(trees[:1], "train", 1024)
    groups.further = [further(groups, trees[1], "train")]
    policy = Policy(load_model(theta, "cpu"), 3, "float32").settle(128, Runtime(device="cpu"))
    assert policy.packed and policy.costs(groups) == {i: tokens_of(group) for i, group in enumerate(groups)}
    with torch.no_grad():
        together = policy(policy.batch(groups[:10]))
        alone = torch.cat([policy(policy.batch([[one]])) for group in groups for one in group])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    padded = Policy(policy.model, 3, "float32")
    assert padded.costs(groups) == {i: padded.cost(group) for i, group in enumerate(groups)}


@pytest.mark.parametrize("name", CASES)
def test_finetune_learns_by_each_loss_from_what_it_names(name: str, played: Callable, tmp_path: Path) -> None:
    """Catches a loss that is not wired, a score in another one's place (the first loss would not be that of the
    log-probs), and a run that was ended and goes on to other bytes."""
    inputs, digests = played(name)
    config = finetune_config(loss=name.partition(" ")[0], schedule_epochs=1.0, **SETTINGS[name])
    whole = job_at(tmp_path / "whole", digests)
    summary = finetune.run(inputs, config, whole)
    lines = metrics_of(whole.out)
    learned = finetune._objective(inputs, config, whole)
    model, examples = load_model(inputs["model"], "cpu"), [learned.examples[i] for i in range(len(learned.examples))]
    policy = Policy(model, 3, "float32").settle(128, Runtime(device="cpu"))
    first = np.random.default_rng([7, 0]).permutation(len(examples))[:4].tolist()
    with torch.no_grad():
        logps = policy(policy.batch([examples[i] for i in first]))
    assert lines[0]["loss"] == pytest.approx(learned.sums(logps, first, torch.ones(4))[0].item() / 4, abs=1e-4)
    if name in ("unpaired", "tspin against θ_t"):
        assert lines[0]["rewards/margins"] == pytest.approx(0, abs=2e-4), "policy and opponent are one at first"
    assert summary["steps"] == len(lines) > 2 and all(math.isfinite(line["loss"]) for line in lines)
    if name not in ("tpaw", "tspin against θ_t"):  # of one model, and of pairs alone: tests/training/test_resume.py
        return
    ended = ended_and_resumed(tmp_path / "ended", inputs, digests, config)
    assert (ended / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "of", "message"),
    [
        ("tspin", "unpaired", "1 pairs trees and 0 score trees"),
        ("unpaired", "tspin", r"give none \(finetune.loss: tspin\)"),
        ("tpaw", "alpha", "under each of up to 2 models"),
        ("dft", "unpaired", "`model` is m0, this finetune has m2"),
        ("alpha", "unpaired", "1 pairs trees and 2 score trees"),
    ],
)
def test_scores_of_another_loss_are_refused(name: str, of: str, message: str, played: Callable, tmp_path: Path) -> None:
    """Catches log-probs of one model taken for another's, and a training that begins without those it needs."""
    inputs, digests = played(name)
    config = finetune_config(loss=of, **SETTINGS[of])
    if name == "tspin":
        inputs, digests = {**inputs, "pairs": inputs["pairs"][1:]}, {**digests, "pairs": digests["pairs"][1:]}
        inputs.pop("first")
    with pytest.raises(BadInput, match=message):
        finetune.run(inputs, config, job_at(tmp_path, digests))
