"""Forms of one computation that must agree: packed and padded, each kernel, shared and separate prompts, chunks of the
output layer, Liger's kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from packing_data import GROUPS, PAD, SPECIAL, alone, apart, forms_of, gradients, tiny_llama
from torch import Tensor

from spin_core.config.choices import Kernel, Precision
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.modeling import chunked_logps
from spin_core.modeling.chunked_logps import Head, label_logps
from spin_core.modeling.collate import Tokens
from spin_core.modeling.loading import use_liger
from spin_core.modeling.logprobs import FINE, Policy
from spin_core.modeling.packing import Group
from tests.gpu.proof import Check, Figures, Proof, Skip
from tests.gpu.shapes import groups, small_model

EXACT = 1e-3
"""Of a gradient's norm in float32: three steps of golden data agree to 1e-5; a sum over 30 layers rounds more."""
HALF = {"logps": 2e-2, "gradients": 2e-2}
"""What may be added to twice bfloat16's own difference: nats per label in the mean, part of the gradient's norm."""


def prompt_groups_float64(proof: Proof) -> Figures:
    """A prompt that is computed once for all its answers gives what each sequence alone does, and the same gradients.
    In float64 nothing hides behind rounding: 1e-10 nats, 1e-9 of the gradient."""
    shared, padded = forms_of(tiny_llama(torch.float64, "sdpa").to(proof.device))
    figures: dict[str, float] = {"logps": 0.0, "gradients": 0.0}
    lists: list[Sequence[Group]] = [GROUPS, *SPECIAL.values()]
    for number, some in enumerate(lists[:6] if proof.tiny else lists):
        expected = alone(padded.model, some)
        wanted = gradients(padded.model, expected)
        logps = shared(shared.batch(some))
        figures["logps"] = max(figures["logps"], float((logps - expected).detach().abs().max()))
        figures["gradients"] = max(figures["gradients"], apart(gradients(shared.model, logps), wanted))
        assert figures["logps"] <= 1e-10, f"list {number}: log-probs are {figures['logps']:.2g} nats off"
        assert figures["gradients"] <= 1e-9, f"list {number}: gradients are {figures['gradients']:.2g} off"
    return {**figures, "lists": len(lists)}


def packed_is_padded(kernel: Kernel, precision: Precision) -> Check:
    """The check of one kernel in one precision: on SmolLM2's shape, groups of up to 600 tokens. In float32 each label
    within 3e-4 nats (`FINE`, what the product itself takes for the same), each gradient within 1e-3 of the norm; in
    bfloat16, see `HALF`. A changed first token of the prompts moves the log-probs more than the tolerance, or the
    comparison would show nothing."""

    def check(proof: Proof) -> Figures:
        model, some = small_model(proof), groups(proof)
        train = not (kernel == "flex_attention" and proof.device.type == "cpu")
        padding = _longest(some), _runtime(proof, packing=False), _refuse
        exact = _labels(Policy(model, PAD, "float32").settle(*padding), some, train)
        other = [[replace(one, ids=_changed(one)) for one in group] for group in some]
        policy = Policy(model, PAD, precision).settle(*padding)
        padded = _labels(policy, some, train)
        moved = float((_labels(policy, other, False)[0] - padded[0]).abs().mean())
        try:
            policy = Policy(model.requires_grad_(train), PAD, precision)
            policy.settle(_longest(some), _runtime(proof, attn_implementation=kernel), _refuse)
            packed = _labels(policy, some, train)
        except BadInput as error:
            raise Skip(str(error)) from error
        assert policy.kernel == kernel, f"{kernel} was not used"
        if precision == "float32":
            off = {"logps": float((packed[0] - padded[0]).abs().max())}
            allowed = {"logps": FINE, "gradients": EXACT}
        else:
            off = {"logps": float((packed[0] - exact[0]).abs().mean())}
            own = {"logps": float((padded[0] - exact[0]).abs().mean())}
            own |= {"gradients": apart(padded[1], exact[1])} if train else {}
            allowed = {name: 2 * own.get(name, 0) + HALF[name] for name in HALF}
        if train:
            off["gradients"] = apart(packed[1], padded[1] if precision == "float32" else exact[1])
        for name, value in off.items():
            assert value <= allowed[name], f"{name} are {value:.2g} off, more than {allowed[name]:.2g}"
        assert moved > 3 * allowed["logps"], f"another prompt moves them by {moved:.2g} only: that shows nothing"
        more = {f"{name}, tolerance": allowed[name] for name in off}
        return {**off, **more, "another prompt": moved, "labels": len(packed[0])}

    check.__name__ = f"packed_is_padded_{kernel}_{precision}"
    return check


def _longest(some: Sequence[Group]) -> int:
    return max(len(one) for group in some for one in group)


def _changed(tokens: Tokens) -> Any:
    ids = tokens.ids.copy()
    ids[0] = ids[0] % 100 + 7
    return ids


def _labels(policy: Policy, some: Sequence[Group], train: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """log p of each label, and the gradients of a sum in which each has a weight of its own."""
    with torch.set_grad_enabled(train), policy.autocast():
        logps = policy(policy.batch(some), True)
    return logps.detach().double(), gradients(policy.model, logps) if train else {}


def _runtime(proof: Proof, **changes: Any) -> Runtime:
    return Runtime(device=proof.device.type, **changes)


def _refuse(note: str) -> None:
    raise AssertionError(note)


def chunked_output_layer(proof: Proof) -> Figures:
    """The output layer in three chunks against log-softmax under autograd in float64, float32 inputs: 1e-5 nats and
    1e-5 of the gradients' norm; two thirds of the labels recomputed in the backward pass."""
    labels, width, words = (60, 16, 512) if proof.tiny else (3000, 576, 49152)
    draws = torch.Generator(proof.device).manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws, device=proof.device)

    hidden, layer = drawn(labels, width).requires_grad_(), torch.nn.Linear(width, words, False, device=proof.device)
    with torch.no_grad():
        layer.weight.copy_(drawn(words, width) * width**-0.5)
    targets = torch.randint(words, (labels,), generator=draws, device=proof.device)
    weights = torch.cos(torch.arange(labels, device=proof.device))
    before = dict(chunked_logps.CHUNK_BYTES)
    chunked_logps.CHUNK_BYTES[proof.device.type] = 4 * words * (labels // 3)
    try:
        logps = label_logps(hidden, targets, Head(layer))
        got = torch.autograd.grad(logps @ weights, [hidden, layer.weight])
    finally:
        chunked_logps.CHUNK_BYTES.update(before)
    states, weight = (t.detach().double().requires_grad_() for t in (hidden, layer.weight))
    plain = torch.log_softmax(states @ weight.T, -1).gather(-1, targets[:, None])[:, 0]
    wanted = torch.autograd.grad(plain @ weights.double(), [states, weight])
    figures = {"logps": float((logps - plain).detach().abs().max())}
    for name, one, other in zip(("hidden", "weight"), got, wanted, strict=True):
        figures[f"gradient of {name}"] = float((one - other).norm() / other.norm())
    for name, value in figures.items():
        assert value <= 1e-5, f"{name} is {value:.2g} off"
    return dict(figures)


def liger_kernels(proof: Proof) -> Figures:
    """Liger's norms, rotary positions and MLP against transformers' own, float32: 3e-4 nats a label, 1e-3 of the
    gradients' norm."""
    if find_spec("liger_kernel") is None:
        raise Skip("liger-kernel is not installed")
    if proof.device.type != "cuda":
        raise Skip("Liger's kernels run on CUDA")
    model, some = small_model(proof), groups(proof)
    plain = _labels(Policy(model, PAD, "float32").settle(_longest(some), _runtime(proof), _refuse), some, True)
    use_liger(model)
    liger = _labels(Policy(model, PAD, "float32").settle(_longest(some), _runtime(proof), _refuse), some, True)
    off = {"logps": float((plain[0] - liger[0]).abs().max()), "gradients": apart(liger[1], plain[1])}
    assert off["logps"] <= FINE and off["gradients"] <= EXACT, f"with Liger they are off: {off}"
    return dict(off)


CHECKS: tuple[Check, ...] = (
    packed_is_padded("sdpa", "float32"),
    packed_is_padded("sdpa", "bfloat16"),
    prompt_groups_float64,
    packed_is_padded("flex_attention", "float32"),
    packed_is_padded("flex_attention", "bfloat16"),
    packed_is_padded("flash_attention_2", "bfloat16"),
    chunked_output_layer,
    liger_kernels,
)
