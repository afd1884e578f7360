"""Loss, rewards, gradients and log-probs against the reference's numbers."""

import pytest
import torch
from training_data import sequence_logps

from spin_core.modeling.loss import spin_loss

INPUTS = ("policy_real_logps", "policy_generated_logps", "opponent_real_logps", "opponent_generated_logps")


def close(got: torch.Tensor, expected: list, tolerance: float, where: str) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got.detach().double(), wanted, rtol=0, atol=tolerance, msg=where)


def test_spin_loss_every_golden_case_equal(golden) -> None:
    """Catches a sign, β applied twice, a hinge that is not max(0, 1 − z), rewards with graph. The reference's
    `reference_free` is an opponent whose log-probs are equal, but for the rewards."""
    cases = golden("loss.json")["cases"]
    assert len(cases) > 20
    for case in cases:
        arguments = [torch.tensor(case[name], dtype=getattr(torch, case["dtype"])) for name in INPUTS]
        policy = [tensor.requires_grad_() for tensor in arguments[:2]]
        expected = case["expected"]
        settings = case["beta"], case["loss_type"]
        if "error" in expected:
            with pytest.raises(ValueError, match="sigmoid"):
                spin_loss(*arguments, *settings)
            continue
        losses, real, generated = spin_loss(*arguments, *settings)
        if case["reference_free"]:
            losses, *_ = spin_loss(*policy, *(torch.zeros_like(one) for one in policy), *settings)
        relative = 3e-11 if case["dtype"] == "float64" else 1e-6
        tolerance = relative * max(1.0, *(float(x.detach().abs().max()) for x in arguments))
        close(losses, expected["losses"], tolerance, case["id"])
        close(real, expected["real_rewards"], tolerance, case["id"])
        close(generated, expected["generated_rewards"], tolerance, case["id"])
        losses.mean().backward()
        close(policy[0].grad, expected["grad_policy_real"], tolerance, case["id"])
        close(policy[1].grad, expected["grad_policy_generated"], tolerance, case["id"])
        assert not real.requires_grad
        assert not generated.requires_grad


def test_sequence_logps_every_golden_case_equal(golden) -> None:
    """Catches a missing shift, −100 labels counted, a mean where the sum is meant."""
    for case in golden("loss.json")["batch_logps"]:
        logits, labels = torch.tensor(case["logits"]), torch.tensor(case["labels"])
        close(sequence_logps(logits, labels), case["expected_sum"], 2e-5, case["id"])
        expected = [float("nan") if value is None else value for value in case["expected_average"]]
        got = sequence_logps(logits, labels, average=True).double()
        wanted = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5, equal_nan=True)


def test_sequence_logps_bfloat16_logits_summed_in_float32() -> None:
    """Catches log-probs accumulated in the precision of the logits (off by nats over 1,000 tokens)."""
    logits = torch.randn(1, 1000, 11, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(1000).remainder(11)[None]
    exact = sequence_logps(logits.double(), labels)
    torch.testing.assert_close(sequence_logps(logits, labels).double(), exact, rtol=0, atol=0.01)
