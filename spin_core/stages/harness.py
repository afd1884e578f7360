"""A model on benchmark tasks of lm-evaluation-harness: EleutherAI's tasks by name, and a folder's own.

Is *not*: our held-out rows (evaluate), nor a decision (gate). The numbers are those of `lm_eval` called by hand with
the same model, precision and batch size: each entry of `tasks` is one call of it, with the seeds set anew, so a task's
numbers do not depend on its neighbours in the list. A hub task's data is what the hub has when it is first asked: its
revision is written down, and is not in the key.

inputs   `model`: a model directory · where there is a folder of local tasks also `tasks`: that folder (YAML and data)
outputs  `results.json`: per task metric, value, standard error, items, shots, version, hash of the prompts, dataset ·
         `rows.jsonl`: {id, task, value} of each item, for paired comparison (none of a metric that items do not have) ·
         `samples/<task>.jsonl`: what lm_eval logs of each item
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from spin_core.config.base import Section
from spin_core.config.harness_presets import PRESETS
from spin_core.job import Inputs, Job, Runtime
from spin_core.store.keys import canonical, config_payload

VERSION = 1
LM_EVAL = "0.4.13"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.:+-]{0,199}$"


class HarnessTask(Section):
    """One entry of `harness.tasks`: a name, or `{task: name, …}`."""

    task: str = Field(pattern=NAME, description="Name of a task, group or tag of lm_eval, or of the local folder.")
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
    backend: Literal["hf", "vllm"] = Field(
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
        return [
            one.model_copy(
                update={
                    "num_fewshot": self.num_fewshot if one.num_fewshot is None else one.num_fewshot,
                    "limit": self.limit if one.limit is None else one.limit,
                }
            )
            for one in map(HarnessTask.model_validate, entries.values())
        ]


class Config(Section):
    """What the numbers depend on besides model and task folder: the section, every task spelt out."""

    harness: Harness

    @field_validator("harness")
    @classmethod
    def _spelt_out(cls, value: Harness) -> Harness:
        """The same tasks have the same key however they were written; a folder enters by content, as an input."""
        return value.model_copy(
            update={"tasks": value.chosen(), "num_fewshot": None, "limit": None, "include_path": ""}
        )


def environment(config: Config, runtime: Runtime) -> str:
    """A process of vLLM's interpreter for each list of tasks, or (empty) one of the interpreter that asks."""
    part = config.harness
    if part.backend != "vllm":
        return ""
    return f"vllm harness {sha256(canonical(config_payload(config))).hexdigest()[:12]}"


def run(inputs: Inputs, config: Config, job: Job) -> dict:
    """Write results.json, rows.jsonl and samples/; give the tasks' values. Raises BadInput for another lm_eval, an
    unknown task, a task file that cannot be used and data that cannot be had."""
    from spin_core.engines.harness import calls, tables
    from spin_core.engines.harness.backends import backend
    from spin_core.sources import task_folder

    part, local = config.harness, cast(Path | None, inputs.get("tasks"))
    if local is not None:
        task_folder.files(local)
    calls.check_version(part, calls.installed())
    known = calls.Calls(part, local, job.scratch)
    lm = backend(part.backend, cast(Path, inputs["model"]), part.max_length, job)
    samples = job.out / "samples"
    samples.mkdir()
    told: dict[str, dict[str, Any]] = {}
    with (job.out / "rows.jsonl").open("w", encoding="utf-8") as out:
        for entry in part.tasks:
            found = known.run(lm, entry)
            lines = tables.lines(found, entry, local, cast(str, job.digests.get("tasks", "")))
            told |= lines
            out.writelines(json.dumps(row) + "\n" for row in tables.rows(found, lines))
            tables.write_samples(found, samples)
            _note_shots(entry, lines, job)
    values = {name: line["value"] for name, line in told.items()}
    average = fmean(values.values()) if values else None
    head = {"lm_eval": part.lm_eval, "preset": part.preset, "backend": part.backend, "average": average}
    (job.out / "results.json").write_text(json.dumps({**head, "tasks": told}, indent=1) + "\n", encoding="utf-8")
    asked = "; ".join(
        f"{name} version {line['version']}, {_shots(line)} shots, prompts {line['prompts_sha256'][:12]}"
        for name, line in told.items()
    )
    return {
        "average": average,
        **values,
        "lm_eval": part.lm_eval,
        "asked": asked,
        "items": sum(line["rows"] for line in told.values()),
        "engine": job.engine,
    }


def _shots(line: dict[str, Any]) -> object:
    return "mixed" if line["num_fewshot"] is None else line["num_fewshot"]


def _note_shots(entry: HarnessTask, lines: dict[str, dict[str, Any]], job: Job) -> None:
    for name, line in lines.items():
        if entry.num_fewshot not in (None, line["num_fewshot"]):
            job.note(
                f"harness: {name} was asked with {line['num_fewshot']} examples, not {entry.num_fewshot}, as its own "
                "file says so."
            )
