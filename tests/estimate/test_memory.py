"""The memory model against what torch allocated in real steps of small models."""

from __future__ import annotations

import pytest

from spin_core.engines import slots
from spin_core.estimate import activations, memory
from spin_core.modeling import chunked_logps
from tests.estimate.cases import MIDDLE, NARROW, SHORT, SMALL, TIED, predicted
from tests.estimate.measured import WAYS, Case, peak_of

# The cases below were within 3 %; the table's bound of 15 % would let a quarter of the MLP's tensors go uncounted.
CLOSE = 0.05

# Of bench_memory's cases those that see the most for their time; each was under 3 s on an idle machine.
CHOSEN = [
    Case("six pairs a pass: activations", SMALL, "finetune", [(200, (300, 300))] * 6, 1_000_000),
    Case("short pairs, AdamW: weights", TIED, "finetune", SHORT, 1, optimizer="adamw"),
    Case("bfloat16 and checkpointing", NARROW, "finetune", MIDDLE, 1_000_000, "bfloat16", checkpointing=True),
    Case("bfloat16", NARROW, "finetune", MIDDLE * 2, 1_000_000, "bfloat16"),
    Case("LoRA", SMALL, "finetune", [(100, (200, 200))] * 2, 1, lora=8),
    Case("score", TIED, "score", [(200, (300, 300))] * 2, 1),
    Case("generate", TIED, "generate", slots=16, new=4, prompts=[400] * 16),
]  # fmt: skip


@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name.replace(" ", "-"))
def test_prediction_is_within_its_bound_of_what_was_allocated(case: Case) -> None:
    """Catches an activation that is counted twice or not at all, states of the other optimiser, gradients of frozen
    weights, and a change of training that needs more memory than the sheet says."""
    result, _ = peak_of(lambda: WAYS[case.stage](case))
    peak = predicted(case)
    assert abs(peak.total / result - 1) < CLOSE, f"predicted {peak.total:,} bytes ({peak}), measured {result:,}"


def test_cases_are_dominated_by_what_they_are_named_for() -> None:
    """Catches cases that are all of one kind, of which a model with a wrong half could be right."""
    active, heavy = (predicted(case) for case in CHOSEN[:2])
    assert active.activations > 0.9 * active.total
    assert heavy.weights + heavy.gradients + heavy.optimizer > 0.75 * heavy.total


def test_numbers_that_are_written_twice_are_the_same() -> None:
    """Catches a chunk of logits or a prompt pass that became larger where it is computed, and not in the estimate."""
    assert activations.CHUNK_BYTES == chunked_logps.CHUNK_BYTES
    assert memory.PREFILL_TOKENS == slots.PREFILL_TOKENS


def test_keys_are_repeated_where_cuda_repeats_them() -> None:
    """Catches a sheet that counts keys for every query head where a kernel on CUDA reads grouped ones (bfloat16, one
    answer behind each prompt), and one that forgets them where it does not (float32, and further answers)."""
    one, two = ([(200, answers)] for answers in ((300,), (300, 300)))

    def extra(groups: list, precision: str) -> int:
        forms = (activations.Form(precision, device) for device in ("cuda", "cpu"))  # type: ignore[arg-type]
        cuda, cpu = (activations.saved_by_attention(SMALL, activations.PassShape(groups), form) for form in forms)
        return cuda - cpu

    wide = 2 * (SMALL.queries - SMALL.keys)
    assert extra(one, "bfloat16") == 0
    assert extra(one, "float32") == 500 * wide * 4
    assert extra(two, "bfloat16") == 500 * wide * 2, "of the branch, which sees prompt and itself"
