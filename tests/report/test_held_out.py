"""What a card shows of a harness task."""

from __future__ import annotations

import pytest

from spin_core.report.run_card import _harness


@pytest.mark.parametrize(("shots", "text"), [(None, "mixed shots"), (0, "0-shot"), (25, "25-shot")])
def test_shots_of_a_task_read_well(shots, text) -> None:
    """Catches "None-shot" for a group whose subtasks have different shots, and 0 shots called mixed."""
    task = {"metric": "acc,none", "value": 0.6, "stderr": 0.01, "rows": 100, "num_fewshot": shots}
    (one,) = _harness({"lm_eval": "0.4.13", "tasks": {"mmlu": task}})
    assert one.label == f"mmlu, acc, {text} (lm-eval 0.4.13)"
