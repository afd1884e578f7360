"""Groups of sequences of made-up lengths, and what a model itself says of them: its own logits, one sequence at a time
or padded, without any code of the packed forward pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from training_data import labels_of, pad, sequence_logps
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from spin_core.modeling.chunked_logps import head_of
from spin_core.modeling.collate import Tokens
from spin_core.modeling.logprobs import Policy
from spin_core.modeling.packing import Group

WORDS = 61
PAD = 3


def tiny_llama(dtype: torch.dtype = torch.float64, attention: str = "eager", **changes: Any) -> PreTrainedModel:
    """Two layers, grouped-query attention, weights so large that a wrong mask or position moves several nats.

    Its norms keep float64; Llama's own compute in float32, and rounding there hides what a float64 test is for.
    """
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, pad_token_id=None,
        attn_implementation=attention, **changes,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        layer.input_layernorm, layer.post_attention_layernorm = torch.nn.RMSNorm(24, 1e-6), torch.nn.RMSNorm(24, 1e-6)
    model.model.norm = torch.nn.RMSNorm(24, 1e-6)
    return model.to(dtype).train()


def forms_of(model: PreTrainedModel, kernel: str = "sdpa") -> tuple[Policy, Policy]:
    """Policies of one model, packed and padded. No probe: that is `settle`'s, and has tests of its own."""
    model.set_attn_implementation("spinloop")
    return tuple(Policy(model, PAD, "float32", form, head_of(model)) for form in (kernel, None))  # type: ignore


def tokens(prompt: Sequence[int], answer: Sequence[int], hidden: Sequence[int] = ()) -> Tokens:
    ids = np.array([*prompt, *answer], np.int32)
    return Tokens(ids, len(prompt), np.array(sorted(hidden), np.int32) if len(hidden) else None)


GROUPS = [
    [tokens(range(5, 25), range(7)), tokens(range(5, 25), [9, 8, 7])],
    [tokens([7, 8], [10, 11, 50, 51]), tokens([7, 8], [40]), tokens([7, 8], [1, 2])],
    [tokens([], [10, 11, 50, 51, 4])],
]
SHARED, REAL, OTHER = [5, 9, 7, 31], [11, 12, 13, 14, 15], [21, 22]
SPECIAL = {
    "one pair": [[tokens(SHARED, REAL), tokens(SHARED, OTHER)]],
    "empty generated answer": [[tokens(SHARED, REAL), tokens(SHARED, [])]],
    "empty real answer": [[tokens(SHARED, []), tokens(SHARED, REAL)]],
    "no label at all": [[tokens(SHARED, []), tokens(SHARED, [])]],
    "answers of one token": [[tokens(SHARED, [8]), tokens(SHARED, [9])]],
    "equal answers": [[tokens(SHARED, REAL), tokens(SHARED, REAL)]],
    "no prompt": [[tokens([], REAL), tokens([], OTHER)]],
    "no prompt, one token": [[tokens([], [7]), tokens([], [8])]],
    "prompt of one token": [[tokens([5], REAL), tokens([5], OTHER)]],
    "one sequence": [[tokens(SHARED, REAL)]],
    "three sequences": [[tokens(SHARED, REAL), tokens(SHARED, OTHER), tokens(SHARED, [4, 4, 4])]],
    "groups of several sizes": [[tokens([], OTHER)], [tokens(SHARED, REAL)] * 3, [tokens([5], [])]],
    "hidden end of the prompt": [[tokens(SHARED, REAL, [2, 3]), tokens(SHARED, OTHER, [2, 3])]],
    "hidden in one answer only": [[tokens(SHARED, REAL, [4, 6, 8]), tokens(SHARED, OTHER)]],
    "all hidden but the first": [[tokens(SHARED, REAL, range(1, 9)), tokens(SHARED, OTHER, range(1, 6))]],
}


def alone(model: PreTrainedModel, groups: Sequence[Group]) -> Tensor:
    """log p of each sequence [S], read alone: no padding, no neighbour, all logits."""
    logps = []
    for group in groups:
        for one in group:
            ids, mask, labels = (
                torch.from_numpy(np.int64(part))[None].to(model.device)
                for part in (one.ids, one.mask(), labels_of(one))
            )
            logps.append(sequence_logps(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, labels)[0])
    return torch.stack(logps)


def padded(model: PreTrainedModel, groups: Sequence[Group]) -> Tensor:
    """log p of each sequence [S] from the model's own logits over a padded batch."""
    batch = {name: t.to(model.device) for name, t in pad([one for group in groups for one in group], PAD).items()}
    out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    return sequence_logps(out.logits.float(), batch["labels"])


def gradients(model: PreTrainedModel, logps: Tensor) -> dict[str, Tensor]:
    """Gradient of every parameter from a sum in which each sequence has a weight of its own."""
    model.zero_grad()
    weights = torch.cos(torch.arange(len(logps), dtype=logps.dtype)).to(logps.device)
    (logps * weights).sum().backward()
    return {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in model.named_parameters()}


def apart(result: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of one parameter's gradient by norm, over the norm of the full expected gradient."""
    full = torch.stack([grad.norm() for grad in expected.values()]).norm()
    most = max(float((result[name] - expected[name]).norm()) for name in expected)
    return most / max(float(full), 1e-30) if most else 0.0
