"""Lists of tasks that have a name.

`open-llm-leaderboard-v1` is the paper's Table 2. MMLU is the plain mean of its 57 subjects, as the leaderboard had it
(lm_eval's own group weighs them by size); GSM8K is the answer behind `####`, lm_eval's `strict-match`. The board ran an
older harness: the same weights differ there, GSM8K by 5 points.
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, list[dict[str, Any]]] = {
    "open-llm-leaderboard-v1": [
        {"task": "arc_challenge", "num_fewshot": 25, "metric": "acc_norm"},
        {"task": "truthfulqa_mc2", "num_fewshot": 0, "metric": "acc"},
        {"task": "winogrande", "num_fewshot": 5, "metric": "acc"},
        {"task": "gsm8k", "num_fewshot": 5, "metric": "exact_match,strict-match"},
        {"task": "hellaswag", "num_fewshot": 10, "metric": "acc_norm"},
        {"task": "mmlu", "num_fewshot": 5, "metric": "acc", "mean": "subtasks"},
    ],
}
