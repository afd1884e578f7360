"""One optimiser step, and three in a row, against the reference's trainer, through the project's own loop."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from training_data import GOLDEN, copy_model
from transformers import PreTrainedModel

from spin_core.chat import reference_texts
from spin_core.collate import Batch, encode_reference, pad_reference
from spin_core.models import answer_logps, load_model, load_tokenizer
from spin_core.objectives import SpinPairs
from spin_core.training import Learner

TOLERANCE = {"logps": 2e-4, "rewards": 2e-5, "logits": 1e-6}
ALL = np.arange(4)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict:
    root = tmp_path_factory.mktemp("golden")
    policy = copy_model(root / "policy", "step_weights.safetensors")
    return {"policy": policy, "opponent": copy_model(root / "opponent", "opponent_weights.safetensors")}


@pytest.fixture(scope="module")
def step_data(golden, paths) -> dict:
    """step.json, with each batch's pairs and opponent log-probs as the project makes them from its messages."""
    data, tokenizer = golden("step.json"), load_tokenizer(paths["policy"])
    opponent = load_model(paths["opponent"], "cpu")
    for batch in data["batches"]:
        texts = [reference_texts(row, tokenizer) for row in batch["rows"]]
        lengths = data["max_length"], data["max_prompt_length"], data["truncation_mode"]
        batch["pairs"] = [encode_reference(text, tokenizer, *lengths) for text in texts]
        with torch.no_grad():
            batch["opponent"] = answer_logps(opponent, concatenated(batch), "float32").view(2, 4).T
    return data


def concatenated(batch: dict) -> Batch:
    return pad_reference(batch["pairs"], 3)


def objective_of(batch: dict, beta: float = 0.1, loss: str = "sigmoid") -> SpinPairs:
    return SpinPairs(batch["pairs"], batch["opponent"], 3, beta, loss, "float32", reference=True)


def learner_of(model: PreTrainedModel, clip: float = 0.0, micro: int = 4) -> Learner:
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Learner(accelerator, *accelerator.prepare(model, optimizer), max_grad_norm=clip, micro_batch=micro)


def check_metrics(got: dict, expected: dict) -> None:
    for name, value in expected.items():
        if not name.startswith("logits/"):
            assert got[name] == pytest.approx(value, abs=TOLERANCE[name.split("/")[0]]), name


def test_reference_batch_golden_messages_same_tokens(step_data) -> None:
    """Catches a chain from messages over chat text to tensors that is not the reference's."""
    for batch in step_data["batches"]:
        for key, value in concatenated(batch).items():
            assert value.tolist() == batch["concatenated"][f"concatenated_{key}"]


@pytest.mark.parametrize("micro", [4, 1])
def test_step_golden_batches_loss_and_metrics_equal(step_data, paths, micro) -> None:
    """Catches wrong log-probs, rewards, or means over micro-batches."""
    for batch in step_data["batches"]:
        model = load_model(paths["policy"], "cpu", train=True)
        got = learner_of(model, micro=micro).step(objective_of(batch), ALL, lr=0.0)
        assert got["loss"] == pytest.approx(batch["loss"], abs=5e-6)
        assert got["grad_norm"] == pytest.approx(batch["grad_norm"], abs=2e-5)
        check_metrics(got, batch["metrics"])
        for side, column in (("real", 0), ("generated", 1)):
            expected = torch.tensor(batch[f"opponent_{side}_logps"])
            torch.testing.assert_close(batch["opponent"][:, column], expected, rtol=0, atol=2e-4)


def test_step_golden_variants_loss_equal(step_data, paths) -> None:
    """Catches hinge or β that do not reach the loss of a whole step."""
    for batch in step_data["batches"]:
        for variant in batch["variants"]:
            model = load_model(paths["policy"], "cpu", train=True)
            objective = objective_of(batch, variant["beta"], variant["loss_type"])
            got = learner_of(model).step(objective, ALL, lr=0.0)
            assert got["loss"] == pytest.approx(variant["loss"], abs=5e-5)


def test_model_golden_batches_logits_equal(step_data, paths) -> None:
    """Catches weights or masks that reach the model wrongly: mean logits, padding included, as the reference logs."""
    model = load_model(paths["policy"], "cpu")
    for batch in step_data["batches"]:
        inputs = concatenated(batch)
        with torch.no_grad():
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        for side, half in zip(("real", "generated"), logits.chunk(2), strict=True):
            assert half.mean().item() == pytest.approx(batch["metrics"][f"logits/{side}"], abs=1e-6)


def test_gradients_golden_batches_equal(step_data, paths, golden) -> None:
    """Catches a loss that is right and a gradient that is not (detached terms, padding that leaks)."""
    for number, batch in enumerate(step_data["batches"]):
        model = load_model(paths["policy"], "cpu", train=True)
        loss, _ = objective_of(batch).sums(model, list(range(4)), torch.ones(4))
        (loss / 4).backward()
        expected = load_file(GOLDEN / f"grads_batch{number}.safetensors")
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=5e-6, msg=name)


def test_step_policy_equals_opponent_ties(step_data, paths) -> None:
    """Catches an accuracy that counts ties as won, and a loss that is not ln 2 at the start of an iteration."""
    expected = step_data["policy_equals_opponent"]
    batch = step_data["batches"][expected["batch"]]
    model = load_model(paths["opponent"], "cpu", train=True)
    scored = answer_logps(model, concatenated(batch), "float32").detach().view(2, 4).T
    got = learner_of(model).step(objective_of({**batch, "opponent": scored}), ALL, lr=0.0)
    assert got["loss"] == pytest.approx(expected["loss"], abs=1e-7)
    assert got["rewards/accuracies"] == 0
    check_metrics(got, expected["metrics"])


@pytest.mark.parametrize("name", ["noclip", "clip1"])
def test_three_rmsprop_steps_golden_weights_equal(step_data, paths, name) -> None:
    """Catches another optimiser setting, clipping by value, gradients that are not cleared between steps."""
    trajectory = step_data["trajectories"][name]
    model = load_model(paths["policy"], "cpu", train=True)
    learner = learner_of(model, clip=trajectory["max_grad_norm"] or 0.0)
    for batch, expected in zip(step_data["batches"], trajectory["steps"], strict=True):
        got = learner.step(objective_of(batch), ALL, lr=1e-3)
        assert got["loss"] == pytest.approx(expected["loss"], abs=2e-5)
        assert got["grad_norm"] == pytest.approx(expected["grad_norm_before_clip"], rel=1e-4)
    final = load_file(GOLDEN / trajectory["weights_after3"])
    difference = torch.cat([(p - final[n]).detach().abs().flatten() for n, p in model.named_parameters()])
    assert difference.max() <= 1e-3
    assert (difference > 1e-5).double().mean() <= 1e-3
