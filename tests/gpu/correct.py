"""Correct: what CUDA computes is what the reference, the definition, or the same in float32 says.

float32 is float32: TF32 is off, which is torch's own default (`set_float32_matmul_precision("highest")`, flex_attention
heeds it). Where bfloat16 is compared, the tolerance is what bfloat16 itself makes of the padded form, twice: another
order of sums rounds as much again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from golden_data import ALL, golden_scores, golden_step, objective_of, strategy_of
from safetensors.torch import load_file
from training_data import GOLDEN, copy_model, job_at

from spin_core.job import Job
from tests.gpu import correct_engines, correct_forms, correct_training
from tests.gpu.proof import Figures, Proof

LIMIT = 90
"""Seconds of one check at most: one that hangs must not take the others' time. A first compilation takes 30."""

LOGPS, LOSS, NORM, REWARDS, GRADIENTS = 5e-4, 5e-6, 2e-5, 2e-5, 5e-6
"""tests/golden/README.md's, but for log-probs (there 2e-4): floats of their size, 300, are 3e-5 apart, a CPU is four of
these off, and CUDA sums in yet another order."""
FORMS = {"padded": {"packing": False}, "packed": {"packing": True}}


def golden_step_float32(proof: Proof) -> Figures:
    """Scores, loss, metrics and gradients of the reference's three batches, padded and packed."""
    off: dict[str, float] = {}

    def see(name: str, difference: float, allowed: float) -> None:
        off[name] = max(off.get(name, 0.0), difference)
        assert difference <= allowed, f"{name} is {difference:.2g} off the reference's, more than {allowed:g}"

    policy, opponent, jobs = _golden(proof)
    for name, form in FORMS.items():
        strategy, model = strategy_of(policy, jobs(form))
        for number, batch in enumerate(golden_step(policy)["batches"]):
            scores = golden_scores(opponent, batch, jobs(form))
            expected = torch.tensor([batch["opponent_real_logps"], batch["opponent_generated_logps"]]).T
            see(f"{name} logps", float((scores - expected).abs().max()), LOGPS)
            logps = strategy.policy(strategy.policy.batch(batch["pairs"]))
            loss, _ = objective_of(batch, scores).sums(logps, list(ALL), torch.ones(4, device=logps.device))
            (loss / 4).backward()
            gradients = load_file(GOLDEN / f"grads_batch{number}.safetensors")
            for key, parameter in model.named_parameters():
                assert parameter.grad is not None, f"{key} has no gradient"
                see(f"{name} gradients", float((parameter.grad.cpu() - gradients[key]).abs().max()), GRADIENTS)
            strategy.optimizer.zero_grad()
            got = strategy.step(objective_of(batch, scores), ALL, lr=0.0)
            see(f"{name} loss", abs(got["loss"] - batch["loss"]), LOSS)
            see(f"{name} grad_norm", abs(got["grad_norm"] - batch["grad_norm"]), NORM)
            for key in ("real", "generated", "margins", "accuracies"):
                see(f"{name} rewards", abs(got[f"rewards/{key}"] - batch["metrics"][f"rewards/{key}"]), REWARDS)
    return dict(off)


def golden_three_rmsprop_steps(proof: Proof) -> Figures:
    """The reference's weights after three steps: 99.9 % within 1e-5 and all within 1e-3, as RMSprop divides by the
    gradient's own size and so blows rounding up where a gradient is near 0."""
    figures: Figures = {}
    policy, opponent, jobs = _golden(proof)
    data = golden_step(policy)
    for name, form in FORMS.items():
        trajectory = data["trajectories"]["clip1"]
        strategy, model = strategy_of(policy, jobs(form), trajectory["max_grad_norm"])
        for batch, expected in zip(data["batches"], trajectory["steps"], strict=True):
            got = strategy.step(objective_of(batch, golden_scores(opponent, batch, jobs(form))), ALL, lr=1e-3)
            assert abs(got["loss"] - expected["loss"]) <= 2e-5, f"{name}: loss {got['loss']}, not {expected['loss']}"
        final = load_file(GOLDEN / trajectory["weights_after3"])
        off = torch.cat([(p.detach().cpu() - final[key]).abs().flatten() for key, p in model.named_parameters()])
        figures |= {f"{name} largest": float(off.max()), f"{name} share over 1e-5": float((off > 1e-5).double().mean())}
        assert off.max() <= 1e-3, f"{name}: a weight is {off.max():.2g} off"
        assert (off > 1e-5).double().mean() <= 1e-3, f"{name}: more than 0.1 % of the weights are off by over 1e-5"
    return figures


def _golden(proof: Proof) -> tuple[..., Callable[[dict], Job]]:  # type: ignore[valid-type]
    torch.set_float32_matmul_precision("highest")
    root = proof.folder("golden")
    policy = copy_model(root / "policy", "step_weights.safetensors")
    opponent = copy_model(root / "opponent", "opponent_weights.safetensors")
    return policy, opponent, lambda form: job_at(root, device=proof.device.type, micro_tokens=100_000, **form)


CHECKS = (
    golden_step_float32,
    golden_three_rmsprop_steps,
    *correct_forms.CHECKS,
    *correct_training.CHECKS,
    *correct_engines.CHECKS,
    *correct_training.SHARDED,
)
