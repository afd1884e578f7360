"""docs/metrics.md: what each figure means, from spin_core/analysis/definitions.py."""

from __future__ import annotations

from spin_core.analysis import columns, definitions, gate_metric
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
COLUMNS = (
    "Each page says the same where the pointer rests on a column's head, and in the list below the table. NAME is a "
    "column that is named after a model, a run or a task. A column of another decoder is named after it (`EM at T = "
    "0.3`) and says what the column without that says."
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
    parts.append(f"## Columns of the pages\n\n{filled(COLUMNS)}\n")
    for title, texts in columns.PAGES.items():
        lines = [[name, text] for name, text in texts.items()]
        parts.append(f"### {title}\n\n{table(('column', 'what it says'), lines)}")
    return "\n".join(parts)
