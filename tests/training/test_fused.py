"""Log-probs of labels with a backward pass of their own, against plain log-softmax under autograd."""

from typing import Any

import pytest
import torch
from packing_data import WORDS, apart, gradients, tiny_llama, tokens
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spin_core.modeling import chunked_logps
from spin_core.modeling.chunked_logps import Head, head_of, label_logps
from spin_core.modeling.logprobs import Policy
from spin_core.modeling.packing import pack

WIDTH, VOCABULARY = 6, 17
HEADS = [
    pytest.param(bias, scale, softcap, id=f"bias {bias}, scale {scale}, softcap {softcap}")
    for bias, scale, softcap in ((0, 1.0, 0.0), (1, 1.0, 0.0), (0, 0.25, 0.0), (1, 1.0, 1.5), (1, 3.0, 0.7))
]


@pytest.fixture(params=[None, 1, 3, 5, 10], ids=lambda rows: f"chunks of {rows or 'all'}")
def rows(request, monkeypatch) -> int | None:
    """Labels in one chunk; ten labels are then ten chunks, four (the last of one label), two, one, or one."""
    if request.param:
        monkeypatch.setitem(chunked_logps.CHUNK_BYTES, "cpu", request.param * 4 * VOCABULARY)
    return request.param


def data_of(
    bias: int, labels: int = 10, dtype: torch.dtype = torch.float64, vocabulary: int = VOCABULARY
) -> tuple[Tensor, Tensor, torch.nn.Linear]:
    draws = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(WIDTH, vocabulary, bias=bool(bias), dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws, dtype=torch.float64))
    hidden = torch.randn(labels, WIDTH, generator=draws, dtype=torch.float64).to(dtype).requires_grad_()
    return hidden, torch.randint(vocabulary, (labels,), generator=draws), layer


def plainly(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """The same by its definition."""
    logits = head.scale * torch.nn.functional.linear(hidden, head.layer.weight, head.layer.bias)
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets]


@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
def test_label_logps_float64_value_and_gradient_are_those_of_log_softmax(rows, bias, scale, softcap) -> None:
    """Catches a backward pass that forgets scale, soft-cap, bias or a chunk, and float64 that is cut to float32."""
    hidden, targets, layer = data_of(bias)
    head = Head(layer, scale, softcap)
    result, expected = label_logps(hidden, targets, head), plainly(hidden, targets, head)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    inputs, weights = [hidden, *layer.parameters()], torch.arange(1.0, 11.0, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(result @ weights, inputs), torch.autograd.grad(expected @ weights, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
def test_label_logps_gradcheck(rows, bias, scale, softcap) -> None:
    """Catches a gradient that agrees with autograd's at one point or one incoming gradient only."""
    hidden, targets, layer = data_of(bias, labels=4)

    def compute(hidden: Tensor, *parameters: Tensor) -> Tensor:
        args = (parameters[0], parameters[1] if bias else None)
        return chunked_logps._LabelLogps.apply(hidden, *args, targets, Head(layer, scale, softcap))

    assert torch.autograd.gradcheck(compute, (hidden, *layer.parameters()))


@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
def test_label_logps_in_place_sums_the_same_gradients(rows, bias, scale, softcap) -> None:
    """Catches an in-place gradient that overwrites, counts chunks or passes twice, or goes through autograd as well."""
    result = []
    for in_place in (False, True):
        hidden, targets, layer = data_of(bias)
        head = Head(layer, scale, softcap, in_place)
        for weight in (1.0, -0.5):
            (weight * label_logps(hidden, targets, head).sum()).backward()
        result.append([t.grad for t in (hidden, *layer.parameters())])
    for one, other in zip(*result, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_label_logps_only_one_input_trained(rows, trained) -> None:
    """Catches a frozen output layer (LoRA), or frozen hidden states, that fail or get a gradient."""
    hidden, targets, layer = data_of(1)
    parts = {"hidden": hidden, "weight": layer.weight, "bias": layer.bias}
    for name, part in parts.items():
        part.requires_grad_(name == trained)
    label_logps(hidden, targets, Head(layer)).sum().backward()
    (expected,) = torch.autograd.grad(plainly(hidden, targets, Head(layer)).sum(), [parts[trained]])
    torch.testing.assert_close(parts[trained].grad, expected, rtol=0, atol=1e-12)
    assert [name for name, part in parts.items() if part.grad is not None] == [trained]


def test_label_logps_no_label_at_all(rows) -> None:
    """Catches a batch of empty answers that fails, in either direction."""
    hidden, targets, layer = data_of(1, labels=0)
    result = label_logps(hidden, targets, Head(layer))
    assert result.shape == (0,)
    result.sum().backward()
    assert hidden.grad.shape == (0, WIDTH)
    assert layer.weight.grad.abs().sum() == layer.bias.grad.abs().sum() == 0


@pytest.mark.parametrize("tied", [True, False])
def test_label_logps_tied_weights_sum_both_gradients(tied) -> None:
    """Catches the output layer's part of a tied embedding's gradient lost or counted twice."""
    model, plain = (tiny_llama(attention="sdpa", tie_word_embeddings=tied) for _ in range(2))
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    group = [tokens([1, 2, 3], [4, 5, 6, 7]), tokens([1, 2, 3], [8, 9])]
    model.set_attn_implementation("spinloop")
    logps = Policy(model, 3, "float32", "sdpa", head_of(model))(pack([group]))
    expected = torch.stack(
        [
            torch.log_softmax(plain(torch.tensor([one.ids.tolist()])).logits[0], -1)[
                torch.arange(2, len(one) - 1), one.ids[3:].tolist()
            ].sum()
            for one in group
        ]
    )
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-10)
    assert apart(gradients(model, logps), gradients(plain, expected)) < 1e-9


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "bfloat16 weights"])
def test_label_logps_bfloat16_product_float32_behind_it(rows, autocast) -> None:
    """Catches log-softmax, sums or the weight's gradient in bfloat16, whose error grows with the vocabulary; and, under
    autocast, an output layer that is computed in float32 because the last norm gives float32 (half the speed)."""
    exact, targets, layer = data_of(1, labels=10, vocabulary=5000)
    rough = torch.nn.Linear(WIDTH, 5000, dtype=torch.float32 if autocast else torch.bfloat16)
    rough.load_state_dict(layer.state_dict())
    layer.load_state_dict({name: value.bfloat16() for name, value in layer.state_dict().items()})
    hidden = exact.detach().to(torch.float32 if autocast else torch.bfloat16).requires_grad_()
    exact = exact.detach().bfloat16().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Watch() as watch:
        result = label_logps(hidden, targets, Head(rough))
    assert {dtype for name, _, dtype in watch.seen if name in ("mm", "addmm", "linear")} == {torch.bfloat16}
    assert result.dtype == torch.float32
    expected = plainly(exact, targets, Head(layer))
    # A logit of about 4 is rounded to 8 bits: 2^-8 of it at most. Log-sum-exp in bfloat16 would be off by tenths.
    assert (result - expected).abs().max() < 0.03
    result.sum().backward()
    expected.sum().backward()
    assert hidden.grad.dtype == hidden.dtype and rough.weight.grad.dtype == rough.weight.dtype
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=0.02, atol=0.05)
    torch.testing.assert_close(rough.weight.grad.double(), layer.weight.grad, rtol=0.02, atol=0.02)


class Watch(TorchDispatchMode):
    """Every tensor that is made, in the backward pass too: operation, shape, dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...], torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor):
                self.seen.append((func.overloadpacket.__name__, tuple(one.shape), one.dtype))
        return out


@pytest.mark.parametrize(("bias", "scale", "softcap"), HEADS)
def test_label_logps_never_more_logits_than_a_chunk(monkeypatch, bias, scale, softcap) -> None:
    """Catches logits of all labels at once, forward or backward: the point of the module."""
    labels, chunk = 100, 8
    monkeypatch.setitem(chunked_logps.CHUNK_BYTES, "cpu", chunk * 4 * VOCABULARY)
    hidden, targets, layer = data_of(bias, labels=labels)
    with Watch() as watch:
        label_logps(hidden, targets, Head(layer, scale, softcap)).sum().backward()
    logits = [shape[0] for _, shape, _ in watch.seen if len(shape) == 2 and shape[1] == VOCABULARY]
    assert max(logits) == chunk
    with Watch() as plain:
        plainly(hidden, targets, Head(layer, scale, softcap)).sum().backward()
    assert max(shape[0] for _, shape, _ in plain.seen if len(shape) == 2) == labels, "the watch sees what it should"


def test_head_of_any_output_layer(monkeypatch) -> None:
    """Catches a scale or soft-cap of the config that is not taken, and an output layer that is not linear taken for
    one."""
    model = tiny_llama()
    assert head_of(model) == Head(model.lm_head)
    monkeypatch.setattr(model.config, "logits_scaling", 4.0, raising=False)
    monkeypatch.setattr(model.config, "final_logit_softcapping", 30.0, raising=False)
    assert head_of(model) == Head(model.lm_head, 0.25, 30.0)

    class Odd(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) ** 2

    model.set_output_embeddings(Odd(24, WORDS))
    assert head_of(model) is None
