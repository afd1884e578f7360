"""`harness:` in a profile: benchmark tasks of lm-evaluation-harness."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from spin_core.config.base import Section
from spin_core.config.choices import HarnessBackend

LM_EVAL = "0.4.13"
TASK_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.:+-]{0,199}$"
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
"""Lists of tasks that have a name. `open-llm-leaderboard-v1` is the paper's Table 2. MMLU is the plain mean of its 57
subjects, as the leaderboard had it (lm_eval's own group weighs them by size); GSM8K is the answer behind `####`,
lm_eval's `strict-match`. The board ran an older harness: the same weights differ there, GSM8K by 5 points."""


class HarnessTask(Section):
    """One entry of `harness.tasks`: a name, or `{task: name, …}`."""

    task: str = Field(pattern=TASK_NAME, description="Name of a task, group or tag of lm_eval, or of the local folder.")
    num_fewshot: int | None = Field(None, ge=0, description="Examples before each question; empty: the task's own.")
    limit: int | None = Field(None, ge=1, description="Only the first items (of each subtask); empty: all.")
    metric: str = Field("", description="Metric, or metric,filter; empty: the task's first.")
    mean: Literal["items", "subtasks"] = Field(
        "items", description="What weighs alike in the mean of a group: every item, or every subtask."
    )


def _named(value: Any) -> Any:
    return {"task": value} if isinstance(value, str) else value


ENTRY = WithJsonSchema(
    {
        "anyOf": [
            {"type": "string", "title": "name"},
            {
                "type": "object",
                "title": "settings",
                "properties": {
                    "task": {"type": "string"},
                    "num_fewshot": {"type": "integer"},
                    "limit": {"type": "integer"},
                    "metric": {"type": "string"},
                    "mean": {"enum": ["items", "subtasks"]},
                },
                "additionalProperties": False,
            },
        ]
    }
)
"""The entry's schema in one piece: the run form of the UI has no place for definitions."""


class Harness(Section):
    """`harness:` in a profile."""

    preset: Literal["", "open-llm-leaderboard-v1"] = Field(
        "", description="A named list of tasks with shots and metrics; `tasks` adds to it, or changes an entry of it."
    )
    tasks: list[Annotated[HarnessTask, BeforeValidator(_named), ENTRY]] = Field(
        default_factory=list,
        description="Tasks by name, or as {task, num_fewshot, limit, metric, mean} with what differs from the rest.",
    )
    include_path: str = Field("", description="Folder with task files of your own (YAML without code) and their data.")
    num_fewshot: int | None = Field(
        None, ge=0, description="Examples before each question, for tasks that do not say; empty: each task's own."
    )
    limit: int | None = Field(None, ge=1, description="First items of every task that has no limit of its own.")
    max_length: int | None = Field(
        None,
        ge=2,
        description="Tokens of prompt and answer; a longer prompt keeps its end. Empty: the model's context.",
    )
    backend: HarnessBackend = Field(
        "hf", description="What computes: transformers, or vllm in its own interpreter (`make vllm-env`)."
    )
    chat_template: bool = Field(False, description="Put prompts into the model's chat template.")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        default=[0, 1234, 1234, 1234],
        min_length=4,
        max_length=4,
        description="Seeds of Python, numpy, torch and the few-shot examples; the default is lm_eval's own.",
    )
    lm_eval: str = Field(LM_EVAL, description="Release of lm_eval that must be installed.")

    @model_validator(mode="after")
    def _has_tasks(self) -> Harness:
        if not (self.preset or self.tasks):
            raise ValueError("name at least one task in tasks, or a preset")
        names = [one.task for one in self.tasks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"the task {twice} is listed twice; leave one out")
        return self

    def chosen(self) -> list[HarnessTask]:
        """The preset's tasks and `tasks`, what is left open filled in from the section."""
        entries = {one["task"]: one for one in PRESETS.get(self.preset, [])}
        for one in self.tasks:
            entries[one.task] = {**entries.get(one.task, {}), **one.model_dump(exclude_unset=True)}
        rest = {"num_fewshot": self.num_fewshot, "limit": self.limit}
        said = ({name: value for name, value in one.items() if value is not None} for one in entries.values())
        return [HarnessTask.model_validate(rest | one) for one in said]
