"""The kernels of packed attention against one dense mask, and which of them may run where."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from packing_data import GROUPS, forms_of, tiny_llama, tokens
from packing_draws import group_lists
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.modeling import attention, logprobs
from spin_core.modeling.chunked_logps import head_of
from spin_core.modeling.logprobs import Policy
from spin_core.modeling.packing import Group, Layout, pack

few = settings(max_examples=15, derandomize=True)


def states_of(layout: Layout, dtype: torch.dtype = torch.float64, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Queries of four heads, keys and values of two."""
    draws = torch.Generator().manual_seed(1)
    shapes = ((1, heads, len(layout.group), 8) for heads in (4, 2, 2))
    return tuple(torch.randn(shape, generator=draws, dtype=torch.float64).to(device, dtype) for shape in shapes)  # type: ignore


def dense(layout: Layout, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The definition: one mask over the full packed sequence, [1, T, H, D]."""
    group, branch = torch.from_numpy(layout.group), torch.from_numpy(layout.branch)
    seen = (group[:, None] == group[None]) & ((branch[None] == 0) | (branch[:, None] == branch[None]))
    seen = seen.tril()
    if layout.hidden is not None:
        seen &= ~torch.from_numpy(layout.hidden)[None]
    out = scaled_dot_product_attention(query, key, value, seen.to(query.device), enable_gqa=True)
    return out.transpose(1, 2)


@few
@given(groups=group_lists())
@pytest.mark.parametrize("kernel", ["sdpa", "flex_attention"])
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_kernel_any_layout_equals_one_dense_mask(kernel, groups) -> None:
    """Catches a block that sees too much or too little, segments put back in another order, padding that leaks."""
    layout = pack(groups, kernel).inputs["layout"]
    states = states_of(layout)
    with torch.no_grad():
        result = attention.KERNELS[kernel](layout, *states, None)
    torch.testing.assert_close(result, dense(layout, *states), rtol=0, atol=1e-12)


@few
@given(groups=group_lists(hide=False))
def test_flash_index_preparation_any_layout_equals_one_dense_mask(groups) -> None:
    """Catches ragged rows, ends or lengths that do not mean what flash-attn's varlen kernel takes them for: here each
    segment is computed by its rows, causal and aligned to the last key, as that kernel does."""
    layout = pack(groups, "flash_attention_2").inputs["layout"]
    query, key, value = (states[0].transpose(0, 1) for states in states_of(layout))
    outputs = []
    for q_rows, k_rows, q_ends, k_ends, call in attention._varlen_calls(layout, torch.device("cpu")):
        assert q_ends.dtype == k_ends.dtype == torch.int32
        assert np.diff(q_ends).max() == max(call.q_lengths) and np.diff(k_ends).max() == max(call.k_lengths)
        outputs.append(ragged(query[q_rows], key[k_rows], value[k_rows], q_ends, k_ends))
    result = attention._restore(layout, outputs)
    torch.testing.assert_close(result, dense(layout, *states_of(layout)), rtol=0, atol=1e-12)


def ragged(q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, scale: float | None = None) -> Tensor:
    """[T, H, D] of segments one after another, each causal with its last query at its last key."""
    outputs = []
    for i in range(len(q_ends) - 1):
        part = (q[q_ends[i] : q_ends[i + 1]], *(x[k_ends[i] : k_ends[i + 1]] for x in (k, v)))
        seen = torch.ones(len(part[0]), len(part[1]), dtype=torch.bool).tril(len(part[1]) - len(part[0]))
        heads = (x.transpose(0, 1)[None] for x in part)
        out = scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale, enable_gqa=True)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def flash_attn(monkeypatch) -> None:
    """A package flash_attn whose kernel is `ragged`, and as choosy as the real one; for where there is no GPU."""

    def flash_attn_varlen_func(q, k, v, q_ends, k_ends, longest_q, longest_k, softmax_scale=None, causal=False):
        if q.dtype not in (torch.float16, torch.bfloat16) or not q.dtype == k.dtype == v.dtype:
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        assert causal and q_ends[-1] == len(q) and k_ends[-1] == len(k) == len(v)
        return ragged(q, k, v, q_ends, k_ends, softmax_scale)

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def test_flash_under_autocast_near_sdpa_and_the_probe_lets_it_pass(flash_attn) -> None:
    """Catches float32 states that flash-attn refuses (rotary positions give these even under autocast, and the probe
    has none): every model would be padded, with a note. What is faulty is still refused."""
    model = tiny_llama(torch.float32, "sdpa")
    sdpa, _ = forms_of(tiny_llama(torch.float32, "sdpa"))
    flash = Policy(model, 3, "bfloat16", "flash_attention_2", head_of(model))
    plain = flash._probe(logprobs.pad_groups(logprobs._probe_groups(model), 3))
    assert flash._cannot_pack("flash_attention_2", plain, 64) == ""
    batch = flash.batch(GROUPS)
    assert batch.inputs["layout"].kernel == "flash_attention_2"
    torch.testing.assert_close(flash(batch), sdpa(sdpa.batch(GROUPS)), rtol=0.02, atol=0.3)
    assert "log-probs are off" in flash._cannot_pack("flash_attention_2", plain + 0.2, 64)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_rotary_float32_does_not_decide_what_a_kernel_computes_in() -> None:
    """Catches flex_attention that gets queries in float32 and values in bfloat16, which a torch whose autocast does not
    cast there refuses, and keys that SDPA on CUDA repeats for every head as if autocast computed in float32."""
    layout = pack(GROUPS, "flex_attention").inputs["layout"]
    query, key, value = (states.float() for states in states_of(layout))
    out = attention.KERNELS["flex_attention"](layout, query, key, value.bfloat16(), None)
    assert out.dtype == torch.bfloat16
    assert attention.computed_in(query) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.computed_in(query) == torch.bfloat16


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 has no flex attention for such heads on a CPU"
)
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_flex_scores_on_cpu_as_sdpa_does(precision) -> None:
    """Catches flex_attention that is not used at all, or gives other log-probs, also under autocast."""
    model = tiny_llama(torch.float32, "sdpa").requires_grad_(False)
    notes: list[str] = []
    policies = [
        Policy(model, 3, precision).settle(64, Runtime(device="cpu", attn_implementation=kernel), notes.append)
        for kernel in ("flex_attention", "sdpa")
    ]
    assert [one.kernel for one in policies] == ["flex_attention", "sdpa"] and not notes
    batches = [one.batch(GROUPS) for one in policies]
    with torch.inference_mode():
        flex, sdpa = (one(batch) for one, batch in zip(policies, batches, strict=True))
    torch.testing.assert_close(flex, sdpa, rtol=0, atol=2e-4 if precision == "float32" else 0.2)
    assert any(name == "flex" for name, _ in batches[0].inputs["layout"].prepared)


@pytest.mark.parametrize(
    ("kernel", "precision", "train", "message"),
    [
        ("flex_attention", "float32", True, "flex_attention has no backward pass on CPU"),
        ("flash_attention_2", "bfloat16", False, "needs the package flash-attn"),
    ],
)
def test_settle_kernel_that_cannot_run_refused(kernel, precision, train, message) -> None:
    """Catches a traceback from inside a kernel after the data is made, or a run that quietly takes another kernel."""
    model = tiny_llama(torch.float32, "sdpa").requires_grad_(train)
    with pytest.raises(BadInput, match=rf"^runtime\.attn_implementation: .*{message}.*use sdpa$"):
        Policy(model, 3, precision).settle(64, Runtime(device="cpu", attn_implementation=kernel))


def test_require_flash_device_and_precision(monkeypatch) -> None:
    """Catches flash-attn on a CPU, or rounding to bfloat16 under `precision: float32` without a word."""
    monkeypatch.setattr(attention, "find_spec", lambda name: object())
    with pytest.raises(BadInput, match="runs on CUDA, not on cpu"):
        attention.require("flash_attention_2", torch.device("cpu"), False, "bfloat16")
    with pytest.raises(BadInput, match="computes in bfloat16, precision is float32"):
        attention.require("flash_attention_2", torch.device("cuda"), False, "float32")
    attention.require("flash_attention_2", torch.device("cuda"), True, "bfloat16")
    attention.require("flex_attention", torch.device("cuda"), True, "float32")


def test_flash_hidden_tokens_go_through_sdpa(flash_attn) -> None:
    """Catches flash-attn with `collation: reference`, whose hidden tokens it would see; or a run that ends at its first
    batch with an exception, as the probe hides nothing."""
    model = tiny_llama(torch.float32, "sdpa")
    sdpa, _ = forms_of(model)
    flash = Policy(model, 3, "float32", "flash_attention_2", head_of(model))
    groups: list[Group] = [[tokens([1, 2, 3], [4, 5], [2, 3]), tokens([1, 2, 3], [6, 7], [2])]]
    assert torch.equal(flash(flash.batch(groups)), sdpa(sdpa.batch(groups)))
