"""docs/metrics.md: what each figure means, from spin_core/analysis/definitions.py."""

from __future__ import annotations

from spin_core.analysis import definitions, gate_metric
from tests.architecture.reference.text import COMMAND, filled, table

HEAD = f"""# Every figure

Generated from spin_core/analysis/definitions.py (`{COMMAND}`; a test says when it
is stale). KIND is a way in which answers are drawn: `greedy`, `sampled` (temperature 1), `t0.3`
(`evaluate.temperatures`), `deployed` (as the model's generation_config.json says). *Better* says what is better, all
else equal; where it is empty neither is.

"""
PARTS = (
    ("evaluate: metrics.json", "On held-out rows, of each model.", definitions.EVALUATE),
    (
        "sft and finetune: metrics.jsonl",
        "One line for each optimiser step. Of finetune loss, accuracies and margins are means over all pairs of the "
        "step, the other figures over those that are computed: pairs of identical answers, whose gradient is 0, are "
        "not.",
        definitions.TRAINING,
    ),
    (
        "harness: results.json",
        "Of each task, under `tasks`; `average` beside it is the plain mean of their values. lm-evaluation-harness "
        "defines the tasks.",
        definitions.HARNESS,
    ),
)


def page() -> str:
    """The page's Markdown."""
    auto = ", ".join(f"`{name}`" for name in gate_metric.ORDER)
    parts = [
        HEAD,
        filled(f"The gate goes by `gate.metric`; `auto` takes the first of these that all models have: {auto}."),
    ]
    parts[-1] += "\n"
    for title, text, metrics in PARTS:
        lines = [[f"`{one.name}`", one.unit, one.better, one.text] for one in metrics]
        parts.append(f"## {title}\n\n{filled(text)}\n\n{table(('figure', 'unit', 'better', 'what it says'), lines)}")
    lines = [[name, text] for name, text in definitions.COLUMNS.items()]
    parts.append(f"## Columns of the report\n\n{table(('column', 'what it says'), lines)}")
    return "\n".join(parts)
