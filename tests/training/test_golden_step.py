"""One optimiser step, and three in a row, against the reference's trainer, through the project's own scoring and loop:
padded and packed, with and without gradient checkpointing. The golden data hides EOS keys, so packing is held to these
too."""

import golden_data
import pytest
import torch
from golden_data import ALL, golden_scores, golden_step, objective_of
from safetensors.torch import load_file
from training_data import GOLDEN, calls_of, copy_model, job_at
from transformers import PreTrainedModel

from spin_core.modeling.loading import load_model
from spin_core.training.strategy import Strategy
from tests.benchmarks.reference_way import pad_reference

TOLERANCE = {"logps": 2e-4, "rewards": 2e-5}
SIDES = ("real", "generated")
FORMS = [
    pytest.param({"packing": packing, "gradient_checkpointing": again}, id=f"{form}{', checkpointed' * again}")
    for packing, form in ((False, "padded"), (True, "packed"))
    for again in (False, True)
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("golden")
    policy = copy_model(root / "policy", "step_weights.safetensors")
    return {"policy": policy, "opponent": copy_model(root / "opponent", "opponent_weights.safetensors")}


@pytest.fixture(scope="module")
def step_data(paths) -> dict:
    return golden_step(paths["policy"])


@pytest.fixture(scope="module")
def scores(step_data, paths, tmp_path_factory):
    """`scores(batch, form)`: the opponent's log-probs [4, 2] of a golden batch, as `score` makes them in that form."""
    known: dict[tuple[int, bool], torch.Tensor] = {}

    def scores(number: int, form: dict) -> torch.Tensor:
        key = number, form["packing"]
        if key not in known:
            job = job_at(tmp_path_factory.mktemp("score"), packing=form["packing"])
            known[key] = golden_scores(paths["opponent"], step_data["batches"][number], job)
        return known[key]

    return scores


def strategy_of(
    path, tmp_path, form: dict, clip: float = 0.0, budget: int = 100_000
) -> tuple[Strategy, list[dict], PreTrainedModel]:
    """The project's strategy of the model in `path`, and what its decoder is called with from here on."""
    strategy, model = golden_data.strategy_of(path, job_at(tmp_path, micro_tokens=budget, **form), clip)
    return strategy, calls_of(model), model


def check_form(calls: list[dict], form: dict, passes: int) -> None:
    """The decoder was called so often, and in the requested form."""
    assert len(calls) == passes
    assert all(("layout" in call) is form["packing"] for call in calls)


def check_metrics(got: dict, expected: dict) -> None:
    for name, value in expected.items():
        if not name.startswith("logits/"):
            assert got[name] == pytest.approx(value, abs=TOLERANCE[name.split("/")[0]]), name


def test_reference_batch_golden_messages_same_tokens(step_data) -> None:
    """Catches a chain from messages over chat text to tensors that is not the reference's."""
    for batch in step_data["batches"]:
        for key, value in pad_reference(batch["pairs"], 3).items():
            assert value.tolist() == batch["concatenated"][f"concatenated_{key}"]


def test_packing_golden_batches_hide_tokens(step_data) -> None:
    """Catches golden data that has lost what makes packing hard: hidden keys inside prompts and answers."""
    for batch in step_data["batches"]:
        result = [tokens.masked for pair in batch["pairs"] for tokens in pair]
        assert any(masked is not None and len(masked) > 1 for masked in result)


@pytest.mark.parametrize("form", FORMS)
def test_scores_golden_batches_equal(step_data, scores, form) -> None:
    """Catches opponent log-probs that are not the reference's, or exchanged sides, in either form."""
    for number, batch in enumerate(step_data["batches"]):
        for column, side in enumerate(SIDES):
            expected = torch.tensor(batch[f"opponent_{side}_logps"])
            torch.testing.assert_close(scores(number, form)[:, column], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("budget", "passes"), [(100_000, 1), (1, 4)])
def test_step_golden_batches_loss_and_metrics_equal(step_data, paths, scores, tmp_path, form, budget, passes) -> None:
    """Catches wrong log-probs, rewards, or means over micro-batches; and packing that is quietly not used."""
    for number, batch in enumerate(step_data["batches"]):
        strategy, calls, _ = strategy_of(paths["policy"], tmp_path, form, budget=budget)
        got = strategy.step(objective_of(batch, scores(number, form)), ALL, lr=0.0)
        check_form(calls, form, passes)
        assert got["loss"] == pytest.approx(batch["loss"], abs=5e-6)
        assert got["grad_norm"] == pytest.approx(batch["grad_norm"], abs=2e-5)
        check_metrics(got, batch["metrics"])


@pytest.mark.parametrize("form", FORMS)
def test_policy_golden_batches_logps_of_each_sequence_equal(step_data, paths, tmp_path, form) -> None:
    """Catches log-probs whose mean is right and that belong to other sequences."""
    strategy, _, _ = strategy_of(paths["policy"], tmp_path, form)
    for batch in step_data["batches"]:
        with torch.no_grad():
            result = strategy.policy(strategy.policy.batch(batch["pairs"])).view(4, 2)
        for column, side in enumerate(SIDES):
            expected = torch.tensor(batch[f"policy_{side}_logps"])
            torch.testing.assert_close(result[:, column], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("form", FORMS)
def test_step_golden_variants_loss_equal(step_data, paths, scores, tmp_path, form) -> None:
    """Catches hinge or β that do not reach the loss of a full step."""
    strategy, _, _ = strategy_of(paths["policy"], tmp_path, form)
    for number, batch in enumerate(step_data["batches"]):
        for variant in batch["variants"]:
            objective = objective_of(batch, scores(number, form), variant["beta"], variant["loss_type"])
            got = strategy.step(objective, ALL, lr=0.0)
            assert got["loss"] == pytest.approx(variant["loss"], abs=5e-5)


def test_model_golden_batches_logits_equal(step_data, paths) -> None:
    """Catches weights or masks that reach the model wrongly: mean logits, padding included, as the reference logs."""
    model = load_model(paths["policy"], "cpu")
    for batch in step_data["batches"]:
        inputs = pad_reference(batch["pairs"], 3)
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        for side, half in zip(SIDES, logits.chunk(2), strict=True):
            assert half.mean().item() == pytest.approx(batch["metrics"][f"logits/{side}"], abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_golden_batches_equal(step_data, paths, scores, tmp_path, form) -> None:
    """Catches a loss that is right and a gradient that is not (detached terms, padding that leaks, a backward pass of
    our own that is wrong)."""
    for number, batch in enumerate(step_data["batches"]):
        strategy, calls, model = strategy_of(paths["policy"], tmp_path, form)
        layer = calls_of(model, "layers.1.mlp")
        logps = strategy.wrapped(strategy.policy.batch(batch["pairs"]))
        loss, _ = objective_of(batch, scores(number, form)).sums(logps, list(range(4)), torch.ones(4))
        (loss / 4).backward()
        check_form(calls, form, 1)
        assert len(layer) == 1 + form["gradient_checkpointing"]
        expected = load_file(GOLDEN / f"grads_batch{number}.safetensors")
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=5e-6, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_step_policy_equals_opponent_ties(step_data, paths, scores, tmp_path, form) -> None:
    """Catches an accuracy that counts ties as won, a loss that is not ln 2 at the start of an iteration, and training
    whose forward pass is another one than scoring's: in batches of one shape these tie to the last bit."""
    expected = step_data["policy_equals_opponent"]
    batch = step_data["batches"][expected["batch"]]
    strategy, _, _ = strategy_of(paths["opponent"], tmp_path, form)
    got = strategy.step(objective_of(batch, scores(expected["batch"], form)), ALL, lr=0.0)
    assert got["loss"] == pytest.approx(expected["loss"], abs=1e-7)
    assert got["rewards/accuracies"] == 0
    check_metrics(got, expected["metrics"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["noclip", "clip1"])
def test_three_rmsprop_steps_golden_weights_equal(step_data, paths, scores, tmp_path, name, form) -> None:
    """Catches another optimiser setting, clipping by value, gradients that are not cleared between steps."""
    trajectory = step_data["trajectories"][name]
    strategy, calls, model = strategy_of(paths["policy"], tmp_path, form, clip=trajectory["max_grad_norm"] or 0.0)
    for number, (batch, expected) in enumerate(zip(step_data["batches"], trajectory["steps"], strict=True)):
        got = strategy.step(objective_of(batch, scores(number, form)), ALL, lr=1e-3)
        assert got["loss"] == pytest.approx(expected["loss"], abs=2e-5)
        assert got["grad_norm"] == pytest.approx(expected["grad_norm_before_clip"], rel=1e-4)
    check_form(calls, form, 3)
    final = load_file(GOLDEN / trajectory["weights_after3"])
    difference = torch.cat([(p - final[n]).detach().abs().flatten() for n, p in model.named_parameters()])
    assert difference.max() <= 1e-3
    assert (difference > 1e-5).double().mean() <= 1e-3
