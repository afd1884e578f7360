"""The cases that the memory model is held against, and what it predicts for one."""

from __future__ import annotations

from dataclasses import replace

from spin_core.estimate import memory
from spin_core.estimate.activations import Form, PassShape
from spin_core.estimate.architecture import Architecture
from spin_core.modeling.logprobs import micro_batches
from spin_core.runtime.process_group import deal
from tests.estimate.measured import Case

BOUND = 0.15
"""By which prediction and measurement may differ."""

SMALL = Architecture(4, 256, 8, 4, 32, 704, 2000)
WIDE = Architecture(2, 512, 8, 8, 64, 1408, 8000)
TIED = Architecture(6, 192, 6, 2, 32, 512, 12000, tied=True)
NARROW = Architecture(3, 128, 4, 2, 32, 352, 1500)
TWO = Architecture(2, 192, 3, 3, 64, 512, 6000, tied=True)

PAIR = (200, (300, 300))
UNEVEN = [(120, (260, 90)), (40, (200, 310)), (250, (120, 80))]
SHORT = [(10, (20, 20))] * 2
MIDDLE = [(60, (90, 90))] * 2
ALL = 1_000_000
"""A budget that puts all groups into one pass; 1 is one group a pass."""

F, S, G = "finetune", "score", "generate"
CASES = [
    Case("one pair a pass", SMALL, F, [PAIR] * 2, 1),
    Case("six pairs a pass: activations", SMALL, F, [PAIR] * 6, ALL),
    Case("uneven pairs, one pass", SMALL, F, UNEVEN, ALL),
    Case("rows of SFT, one pass", SMALL, F, [(200, (300,))] * 4, ALL),
    Case("checkpointing", SMALL, F, [PAIR] * 2, 1, checkpointing=True),
    Case("checkpointing, six pairs a pass", SMALL, F, [PAIR] * 6, ALL, checkpointing=True),
    Case("short pairs, RMSprop: weights", WIDE, F, SHORT, 1),
    Case("short pairs, AdamW: weights", WIDE, F, SHORT, 1, optimizer="adamw"),
    Case("one pair a pass", WIDE, F, [PAIR] * 2, 1),
    Case("checkpointing", WIDE, F, [PAIR] * 2, 1, checkpointing=True),
    Case("one pair a pass", TIED, F, [PAIR] * 2, 1),
    Case("three pairs a pass: activations", TIED, F, [PAIR] * 3, ALL),
    Case("checkpointing", TIED, F, [PAIR] * 2, 1, checkpointing=True),
    Case("short pairs, AdamW", TIED, F, SHORT, 1, optimizer="adamw"),
    Case("LoRA of rank 8", SMALL, F, [PAIR] * 2, 1, lora=8),
    Case("LoRA, checkpointing", SMALL, F, [PAIR] * 2, 1, lora=8, checkpointing=True),
    Case("bfloat16", NARROW, F, MIDDLE, 1, "bfloat16"),
    Case("bfloat16, all in one pass", NARROW, F, MIDDLE * 2, ALL, "bfloat16"),
    Case("bfloat16, checkpointing", NARROW, F, MIDDLE * 2, ALL, "bfloat16", checkpointing=True),
    Case("bfloat16, LoRA of rank 4", NARROW, F, MIDDLE, 1, "bfloat16", lora=4),
    Case("bfloat16, LoRA, checkpointing", NARROW, F, MIDDLE, 1, "bfloat16", checkpointing=True, lora=4),
    Case("bfloat16", TWO, F, MIDDLE, 1, "bfloat16"),
    Case("bfloat16, short pairs, AdamW", TWO, F, SHORT, 1, "bfloat16", optimizer="adamw"),
    Case("one pair a pass", SMALL, S, [PAIR] * 2, 1),
    Case("six pairs a pass", SMALL, S, [PAIR] * 6, ALL),
    Case("one pair a pass", TIED, S, [PAIR] * 2, 1),
    Case("bfloat16", NARROW, S, MIDDLE * 2, ALL, "bfloat16"),
    Case("64 slots, 200 new tokens", SMALL, G, slots=64, new=200, prompts=[60] * 64),
    Case("16 long prompts", TIED, G, slots=16, new=4, prompts=[400] * 16),
    Case("32 slots, a wide model", WIDE, G, slots=32, new=60, prompts=[20] * 32),
]
SPREAD = [
    Case("2 processes, DDP: weights", SMALL, F, SHORT * 2, 1, processes=2),
    Case("2 processes, DDP", SMALL, F, [PAIR] * 4, 1, processes=2),
    Case("2 processes, FSDP2: weights", SMALL, F, SHORT * 2, 1, processes=2, sharding="fsdp2"),
    Case("2 processes, FSDP2", SMALL, F, [PAIR] * 4, 1, processes=2, sharding="fsdp2"),
    Case("2 processes, FSDP2, bfloat16", SMALL, F, [PAIR] * 4, 1, "bfloat16", processes=2, sharding="fsdp2"),
    Case(
        "2 processes, FSDP2, bfloat16, checkpointing",
        SMALL,
        F,
        [PAIR] * 4,
        1,
        "bfloat16",
        True,
        processes=2,
        sharding="fsdp2",
    ),
    Case("2 processes, ZeRO-3", SMALL, F, [PAIR] * 4, 1, processes=2, sharding="zero3"),
]
"""With several processes, of which the first is measured."""


def predicted(case: Case) -> memory.Peak:
    """The memory model's peak of the first process."""
    if case.stage == "generate":
        return memory.generating(case.shape, case.prompts, case.slots, case.new, 4)
    size = lambda group: group[0] + sum(group[1])  # noqa: E731
    groups = sorted(case.groups, key=size, reverse=True)
    groups = [groups[i] for i in deal([size(group) for group in groups], case.processes)[0]]
    cuts = micro_batches([size(group) for group in groups], case.tokens, packed=True)
    batches = [PassShape([groups[i] for i in cut]) for cut in cuts]
    form = Form(case.precision, "cpu", case.lora, case.processes == 1)  # type: ignore[arg-type]
    if case.stage == "score":
        return max((memory.scoring(case.shape, batch, form) for batch in batches), key=lambda peak: peak.total)
    how = memory.Training(
        batches[0], form, case.optimizer, case.checkpointing, len(batches),  # type: ignore[arg-type]
        case.sharding, case.offload, case.processes,
    )  # fmt: skip
    result = (memory.training(case.shape, replace(how, batch=batch)) for batch in batches)
    return max(result, key=lambda peak: peak.total)
