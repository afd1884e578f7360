"""What `finetune:` offers against collapse: the anchor on real answers (`sft_weight`) and log-ratios per token."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from training_data import (
    CHAT,
    DIGESTS,
    finetune_config,
    groups_of,
    job_at,
    labels_of,
    made_up_pairs,
    metrics_of,
    pairs_tree,
    rows_tree,
    score_config,
    scored,
)

from spin_core.config.finetune import Finetune
from spin_core.config.runtime import Runtime
from spin_core.modeling.collate import Tokens
from spin_core.modeling.loading import load_model
from spin_core.modeling.logprobs import Policy
from spin_core.stages import evaluate, finetune, score
from spin_core.store.keys import config_payload
from spin_core.training.objectives import SpinPairs


def answer(labels: int, prompt: int = 3) -> Tokens:
    return Tokens(np.arange(prompt + labels, dtype=np.int32), prompt)


# Log-probs (real, generated) of two pairs under policy and opponent, and the numbers of their labels.
POLICY, OPPONENT, LABELS = [[-12.0, -9.0], [-50.0, -8.0]], [[-10.0, -7.0], [-53.0, -5.0]], [(4, 2), (10, 1)]


def objective(**changes) -> SpinPairs:
    pairs = [(answer(real), answer(generated)) for real, generated in LABELS]
    return SpinPairs(pairs, torch.tensor(OPPONENT)[:, None], Finetune(**{"beta": 0.5, **changes}))


def sums(learned: SpinPairs, weights: tuple[float, float] = (1.0, 1.0)) -> tuple[float, dict[str, float], torch.Tensor]:
    """Loss and figures of the two pairs, and the gradient at their log-probs."""
    logps = torch.tensor(POLICY).flatten().requires_grad_()
    loss, figures = learned.sums(logps, [0, 1], torch.tensor(weights))
    loss.backward()
    assert logps.grad is not None
    return loss.item(), {name: value.item() for name, value in figures.items()}, logps.grad.view(-1, 2)


def softplus(z: float) -> float:
    return math.log1p(math.exp(-z))


def test_sft_weight_adds_nats_per_token_of_the_real_answer() -> None:
    """Catches an anchor on the generated answer, per answer instead of per token, over all tokens of the batch alike
    (62/14 instead of 3 and 5 over pairs), of the log-ratio instead of the log-prob, or one that ignores the weights
    that fill up a process's share."""
    # z = 0.5·((−12+10) − (−9+7)) = 0 and 0.5·((−50+53) − (−8+5)) = 3; anchors 12/4 and 50/10.
    plain, figures, _ = sums(objective())
    assert plain == pytest.approx(softplus(0) + softplus(3))
    assert "nll/real" not in figures
    anchored, figures, _ = sums(objective(sft_weight=0.25))
    assert anchored == pytest.approx(plain + 0.25 * (12 / 4 + 50 / 10))
    assert figures["nll/real"] == pytest.approx(12 / 4 + 50 / 10)
    assert figures["logps/real"] == pytest.approx(-62)
    first, figures, _ = sums(objective(sft_weight=0.25), weights=(1.0, 0.0))
    assert first == pytest.approx(softplus(0) + 0.25 * 3)
    assert figures["nll/real"] == pytest.approx(3)


def test_length_normalised_divides_each_ratio_by_its_own_labels() -> None:
    """Catches both ratios divided by one length, tokens that count the prompt, rewards left as sums, log-probs of the
    figures divided too, and a normalisation after β of the loss alone."""
    loss, figures, gradient = sums(objective(length_normalised=True))
    ratios = [(-2 / 4, -2 / 2), (3 / 10, -3 / 1)]
    z = [0.5 * (real - generated) for real, generated in ratios]
    assert loss == pytest.approx(sum(map(softplus, z)))
    assert figures["rewards/real"] == pytest.approx(0.5 * (-2 / 4 + 3 / 10))
    assert figures["rewards/generated"] == pytest.approx(0.5 * (-2 / 2 - 3 / 1))
    assert figures["rewards/margins"] == pytest.approx(sum(z))
    assert (figures["logps/real"], figures["logps/generated"]) == pytest.approx((-62, -17))
    slopes = [0.5 / (1 + math.exp(value)) for value in z]
    expected = [[-s / real, s / generated] for s, (real, generated) in zip(slopes, LABELS, strict=True)]
    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_equal_lengths_length_normalised_is_plain_with_a_smaller_beta() -> None:
    """Catches a factor that belongs to neither: over answers of 5 labels each, β per token is β/5 per answer."""
    pairs = [(answer(5), answer(5))] * 2
    made = [
        SpinPairs(pairs, torch.tensor(OPPONENT)[:, None], Finetune(beta=beta, loss=loss, length_normalised=normalised))
        for loss in ("sigmoid", "hinge")
        for beta, normalised in ((2.0, True), (0.4, False))
    ]
    for one, other in (made[:2], made[2:]):
        (loss, figures, gradient), (same, also, alike) = sums(one), sums(other)
        assert loss == pytest.approx(same)
        assert figures == pytest.approx(also, abs=1e-5)
        torch.testing.assert_close(gradient, alike)


def test_answer_without_labels_divides_by_one() -> None:
    """Catches 0/0: one answer cut to nothing would make the loss of its full batch NaN."""
    learned = SpinPairs(
        [(answer(0), answer(3))], torch.zeros(1, 1, 2), Finetune(beta=1.0, sft_weight=1.0, length_normalised=True)
    )
    logps = torch.tensor([0.0, -3.0], requires_grad=True)
    loss, figures = learned.sums(logps, [0], torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(softplus(1))
    assert figures["nll/real"].item() == 0
    assert logps.grad is not None and torch.isfinite(logps.grad).all()


def test_anchors_gradient_is_that_of_the_models_own_loss(theta) -> None:
    """Catches an anchor whose gradient is not the NLL's (detached, of other labels, mis-scaled): transformers computes
    the mean NLL of an answer's labels by itself."""
    model, encoded = load_model(theta, "cpu", train=True), groups_of(made_up_pairs(4))
    policy = Policy(model, 3, "float32").settle(128, Runtime(device="cpu"))

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        loss.backward()
        return torch.cat([weight.grad.flatten().clone() for weight in model.parameters() if weight.grad is not None])

    def learned(**changes) -> torch.Tensor:
        pairs = SpinPairs(encoded, torch.full((4, 1, 2), -20.0), Finetune(beta=0.3, **changes))
        return pairs.sums(policy(policy.batch(encoded)), [0, 1, 2, 3], torch.ones(4))[0]

    anchor = gradient(learned(sft_weight=0.7)) - gradient(learned())
    own = torch.zeros(())
    for real, _ in encoded:
        ids, labels = (torch.from_numpy(x.astype("int64"))[None] for x in (real.ids, labels_of(real)))
        own = own + 0.7 * unpacked(model)(input_ids=ids, labels=labels).loss
    wanted = gradient(own)
    assert wanted.norm() > 0.1
    assert (anchor - wanted).norm() < 1e-4 * wanted.norm()


def unpacked(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its own attention, whatever the policy gave it."""
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("runtime", [{"micro_tokens": 170}, {"micro_tokens": 100_000}, {"packing": False}])
def test_remedies_any_budget_same_result(spin, runtime) -> None:
    """Catches labels counted for other pairs than the pass has, and means of the anchor over passes instead of over the
    global batch (the last one has 2 of 4 pairs)."""
    settings = {"lr": 1e-5, "schedule_epochs": 1.0, "sft_weight": 0.5, "length_normalised": True, "beta": 2.0}
    _, one = spin(runtime={"micro_tokens": 1}, **settings)
    _, other = spin(runtime=runtime, **settings)
    first = metrics_of(one)[0]
    assert first["loss"] == pytest.approx(math.log(2) + 0.5 * first["nll/real"], abs=1e-5)
    for a, b in zip(metrics_of(one), metrics_of(other), strict=True):
        for name in ("loss", "nll/real", "rewards/real", "rewards/margins"):
            assert a[name] == pytest.approx(b[name], abs=2e-5), name
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_sft_weight_keeps_the_real_answers(spin) -> None:
    """Catches an anchor with the wrong sign: with it the real answers end more likely than without."""
    settings = {"schedule_epochs": 6.0, "lr": 1e-3}
    _, plain = spin(**settings)
    _, anchored = spin(**settings, sft_weight=2.0)
    assert metrics_of(anchored)[-1]["rewards/real"] > metrics_of(plain)[-1]["rewards/real"] + 0.1


def test_evaluate_reports_the_training_objective_without_the_anchor(tmp_path: Path, theta) -> None:
    """Catches a `spin/loss` of sums beside a training of means (or the other way round: a setting that does not reach
    one of them), lengths of the other answer, and an anchor in it. One step over all pairs, and the next step's figures
    of the weights that it left; evaluate of those weights; and the same from the two models' scores by hand."""
    pairs = made_up_pairs(6)
    tree = pairs_tree(tmp_path / "pairs", pairs, pairs)
    remedies = {"length_normalised": True, "beta": 3.0, "sft_weight": 0.5, "global_batch": 6}
    scores = scored(tmp_path / "score", theta, tree, finetune_config())
    inputs = {"model": theta, "pairs": [tree], "logps": [scores]}
    for name, stop in (("one", 1.0), ("two", 2.0)):
        finetune.run(inputs, finetune_config(stop_epoch=stop, **remedies), job_at(tmp_path / name, DIGESTS))
    new, training = tmp_path / "one" / "out", metrics_of(tmp_path / "two" / "out")[1]

    tables = [scored(tmp_path / "score new", new, tree, finetune_config()), scores]
    lines = [pq.read_table(path / "logps.parquet").to_pylist()[6:] for path in tables]
    margins = []
    for ours, theirs in zip(*lines, strict=True):
        real, generated = ((ours[side] - theirs[side]) / ours[f"{side}_tokens"] for side in ("real", "generated"))
        margins.append(3.0 * (real - generated))
    loss, margin = sum(map(softplus, margins)) / 6, sum(margins) / 6
    assert abs(margin) > 0.1

    rows = rows_tree(tmp_path / "rows", [], pairs)
    how = {"score": score_config(finetune_config()).score, "beta": 3.0, "loss": "sigmoid", "length_normalised": True}
    section = evaluate.Config(evaluate=evaluate.Evaluate(), chat=CHAT, seed=0, **how)
    given = {"model": new, "rows": rows, "tokens": rows, "pairs": tree, "logps": scores}
    metrics = evaluate.run(given, section, job_at(tmp_path / "evaluate"))
    assert (metrics["spin/loss"], metrics["spin/margin"]) == pytest.approx((loss, margin), abs=1e-4)
    anchor = 0.5 * training["nll/real"]
    assert (training["loss"] - anchor, training["rewards/margins"]) == pytest.approx((loss, margin), abs=1e-4)
    lines = [json.loads(line) for line in (tmp_path / "evaluate" / "out" / "rows.jsonl").read_text().splitlines()]
    assert [line["margin"] for line in lines] == pytest.approx(margins, abs=1e-4)


def test_defaults_are_in_no_key() -> None:
    """Catches remedies that make every finetune and evaluate of an older store run again, or that are in no key at
    all."""
    names = {"sft_weight", "length_normalised"}
    assert not names & set(config_payload(finetune.Finetune()))
    assert names <= set(config_payload(finetune.Finetune(sft_weight=1.0, length_normalised=True)))
    part = score.Score(max_length=8, precision="float32", collation="exact")
    common = {"evaluate": evaluate.Evaluate(), "chat": CHAT, "score": part, "seed": 0}
    assert "length_normalised" not in config_payload(evaluate.Config(**common))
    assert config_payload(evaluate.Config(**common, length_normalised=True))["length_normalised"] is True
