"""The benchmark's statement of the reference against what the reference itself computed: a slow straw man, or a fast
one that does other arithmetic, would make the benchmark's ratios worthless."""

import pytest
import torch
from safetensors.torch import load_file
from training_data import GOLDEN, copy_model

from spin_core.modeling.chat import reference_texts
from spin_core.modeling.collate import encode_reference
from spin_core.modeling.loading import load_model, load_tokenizer
from tests.benchmarks.bench_work import Watch, Work
from tests.benchmarks.reference_way import batches_of, forward, loss_and_metrics, pad_reference, run, step

TOLERANCE = {"logps": 2e-4, "rewards": 2e-5, "logits": 1e-6}


@pytest.fixture(scope="module")
def policy_path(tmp_path_factory):
    return copy_model(tmp_path_factory.mktemp("reference") / "policy")


@pytest.fixture(scope="module")
def opponent(tmp_path_factory):
    return load_model(copy_model(tmp_path_factory.mktemp("opponent") / "m", "opponent_weights.safetensors"), "cpu")


@pytest.fixture(scope="module")
def step_data(golden, policy_path) -> dict:
    """step.json, each batch with its padded tensors as `padded`."""
    data, tokenizer = golden("step.json"), load_tokenizer(policy_path)
    lengths = data["max_length"], data["max_prompt_length"], data["truncation_mode"]
    for batch in data["batches"]:
        texts = [reference_texts(row, tokenizer) for row in batch["rows"]]
        batch["padded"] = pad_reference([encode_reference(text, tokenizer, *lengths) for text in texts], 3)
    return data


def work_of(path, **changes) -> Work:
    settings = {"rows": [([5, 6], [7], [8, 9])], "pad_id": 3, "batch": 1, "micro": 1, "epochs": 1, "lr": 1e-3}
    settings |= {"precision": "float32", "device": "cpu", "threads": 1, **changes}
    return Work(model=str(path), **settings)


def check(metrics: dict, expected: dict) -> None:
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=TOLERANCE[name.split("/")[0]]), name


def test_reference_way_batches_golden_same_tokens(step_data) -> None:
    """Catches padding, masks or labels that are not the reference's: other lengths, other work."""
    for batch in step_data["batches"]:
        assert {f"concatenated_{name}": value.tolist() for name, value in batch["padded"].items()} == {
            name: batch["concatenated"][name] for name in batch["concatenated"]
        }


def test_reference_way_golden_loss_metrics_and_gradients_equal(step_data, policy_path, opponent) -> None:
    """Catches another loss, other log-probs, a gradient that flows into the opponent or not at all."""
    for number, batch in enumerate(step_data["batches"]):
        policy = load_model(policy_path, "cpu", train=True)
        loss, metrics = loss_and_metrics(policy, opponent, batch["padded"], step_data["beta"])
        loss.backward()
        assert loss.item() == pytest.approx(batch["loss"], abs=5e-6)
        check(metrics, batch["metrics"])
        expected = load_file(GOLDEN / f"grads_batch{number}.safetensors")
        for name, parameter in policy.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=0, atol=5e-6, msg=name)


def test_reference_way_makes_logits_of_all_positions(step_data, policy_path) -> None:
    """Catches a statement that is spared work which the reference does: float32 logits [2B, W, V]."""
    batch = step_data["batches"][0]
    _, logits = forward(load_model(policy_path, "cpu"), batch["padded"])
    rows, width, vocabulary = batch["logits_shape_real"]
    assert (tuple(logits.shape), logits.dtype) == ((2 * rows, width, vocabulary), torch.float32)


@pytest.mark.parametrize("name", ["noclip", "clip1"])
def test_reference_way_three_rmsprop_steps_golden_weights_equal(step_data, policy_path, opponent, name) -> None:
    """Catches another optimiser, clipping by value, gradients that are not cleared."""
    trajectory = step_data["trajectories"][name]
    policy = load_model(policy_path, "cpu", train=True)
    optimizer = torch.optim.RMSprop(policy.parameters(), lr=1e-3)
    work = work_of(policy_path, beta=step_data["beta"], max_grad_norm=trajectory["max_grad_norm"] or 0.0)
    for batch, expected in zip(step_data["batches"], trajectory["steps"], strict=True):
        loss, metrics = step(policy, opponent, optimizer, [batch["padded"]], work)
        assert loss == pytest.approx(expected["loss"], abs=2e-5)
        assert metrics["grad_norm"] == pytest.approx(expected["grad_norm_before_clip"], rel=1e-4)
    final = load_file(GOLDEN / trajectory["weights_after3"])
    difference = torch.cat([(p - final[n]).detach().abs().flatten() for n, p in policy.named_parameters()])
    assert difference.max() <= 1e-3
    assert (difference > 1e-5).double().mean() <= 1e-3


def test_reference_way_micro_batches_same_step(policy_path, opponent) -> None:
    """Catches micro-batches whose gradients are summed and not averaged."""
    rows = [([5, 6 + i], [7 + i] * (i + 2), [30 + i] * 4) for i in range(4)]
    result = []
    for micro in (4, 2):
        policy, work = load_model(policy_path, "cpu", train=True), work_of(policy_path, rows=rows, batch=4, micro=micro)
        optimizer = torch.optim.RMSprop(policy.parameters(), lr=0.0)
        loss, metrics = step(policy, opponent, optimizer, batches_of(work.pairs, range(4), work), work)
        result.append((loss, metrics["grad_norm"]))
    assert result[1] == pytest.approx(result[0], rel=1e-5)


def test_reference_way_run_learns_from_ln_2(policy_path) -> None:
    """Catches a run whose opponent is not the model it started from, or that does not move the weights."""
    rows = [([5, 6 + i], [7 + i] * (i + 2), [30 + i] * 4) for i in range(4)]
    losses = run(work_of(policy_path, rows=rows, batch=2, micro=2, epochs=2), Watch())
    assert len(losses) == 4 and losses[0] == pytest.approx(0.693147, abs=1e-6)
    assert losses[-1] < losses[0] - 1e-3
