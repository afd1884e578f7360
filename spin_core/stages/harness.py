"""A model on benchmark tasks of lm-evaluation-harness: EleutherAI's tasks by name, and a folder's own.

Is *not*: our held-out rows (evaluate), nor a decision (gate). The numbers are those of `lm_eval` called by hand with
the same model, precision and batch size: each entry of `tasks` is one call of it, with the seeds set anew, so a task's
numbers do not depend on its neighbours in the list. A hub task's data is what the hub has when it is first read: its
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
from typing import Any, cast

from pydantic import field_validator

from spin_core.config.base import Section
from spin_core.config.harness import Harness, HarnessTask
from spin_core.config.runtime import Runtime
from spin_core.engines.harness.backends import BACKENDS, load
from spin_core.job import Inputs, Job
from spin_core.runtime.part import Own
from spin_core.store.keys import canonical, config_payload

NAME = "harness"
VERSION = 1


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


def run(inputs: Inputs, config: Config, job: Job) -> dict[str, Any]:
    """Write results.json, rows.jsonl and samples/; give the tasks' values. Raises BadInput for another lm_eval, an
    unknown task, a task file that cannot be used and data that cannot be had."""
    from spin_core.engines.harness import calls, tables
    from spin_core.sources import task_folder

    part, local = config.harness, cast(Path | None, inputs.get("tasks"))
    if local is not None:
        task_folder.files(local)
    calls.check_version(part, calls.installed())
    known = calls.Calls(part, local, job.scratch)
    lm = load(part.backend, cast(Path, inputs["model"]), part.max_length, job)
    samples = job.out / "samples"
    samples.mkdir()
    lines: dict[str, dict[str, Any]] = {}
    with (job.out / "rows.jsonl").open("w", encoding="utf-8") as out:
        for entry in part.tasks:
            results = known.run(lm, entry)
            own = tables.lines(results, entry, local, cast(str, job.digests.get("tasks", "")))
            lines |= own
            out.writelines(json.dumps(row) + "\n" for row in tables.rows(results, own))
            tables.write_samples(results, samples)
            _note_shots(entry, own, job)
    values = {name: line["value"] for name, line in lines.items()}
    average = fmean(values.values()) if values else None
    head = {"lm_eval": part.lm_eval, "preset": part.preset, "backend": part.backend, "average": average}
    (job.out / "results.json").write_text(json.dumps({**head, "tasks": lines}, indent=1) + "\n", encoding="utf-8")
    settings = "; ".join(
        f"{name} version {line['version']}, {_shots(line)} shots, prompts {line['prompts_sha256'][:12]}"
        for name, line in lines.items()
    )
    return {
        "average": average,
        **values,
        "lm_eval": part.lm_eval,
        "asked": settings,
        "items": sum(line["rows"] for line in lines.values()),
        "engine": job.engine,
    }


def environment(config: Config, runtime: Runtime) -> Own | None:
    """A process for each list of tasks and its interpreter, where the back end has one of its own."""
    backend = config.harness.backend
    if not (python := BACKENDS[backend].engine.interpreter(runtime)):
        return None
    return Own(f"{backend} harness {sha256(canonical(config_payload(config))).hexdigest()[:12]}", python)


def _shots(line: dict[str, Any]) -> object:
    return "mixed" if line["num_fewshot"] is None else line["num_fewshot"]


def _note_shots(entry: HarnessTask, lines: dict[str, dict[str, Any]], job: Job) -> None:
    for name, line in lines.items():
        if entry.num_fewshot not in (None, line["num_fewshot"]):
            job.note(
                f"harness: {name} was run with {line['num_fewshot']} examples, not {entry.num_fewshot}, as its own "
                "file says so."
            )
