"""A model, local tasks with data, and the stage run on them; lm_eval's own results beside it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import yaml

from spin_core.config.runtime import Runtime
from spin_core.job import Job
from spin_core.stages import harness

RUNTIME = Runtime(device="cpu", threads=1, harness_batch=8)
CHOICE = {
    "task": "sums_choice",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/choice.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "target_delimiter": "",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 2.0},
}
WRITE = {
    "task": "sums_write",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data/write.jsonl"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{a}}",
    "generation_kwargs": {"until": ["|"], "max_gen_toks": 6, "do_sample": False},
    "filter_list": [
        {"name": "first", "filter": [{"function": "regex", "regex_pattern": "(?s)^(.)"}, {"function": "take_first"}]},
        {"name": "whole", "filter": [{"function": "take_first"}]},
    ],
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"version": 1.0},
}
TASKS = [
    {"task": "sums_choice", "num_fewshot": 2, "metric": "acc_norm"},
    {"task": "sums_write", "limit": 12, "metric": "exact_match,whole"},
]


def greedy(model: Path, prompts: list[str], new: int) -> list[str]:
    """What the model writes, by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, net = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    written = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        tokens = net.generate(ids, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :]
        written.append(tokenizer.decode(tokens, skip_special_tokens=True).split("|")[0])
    return written


def make_folder(folder: Path, model: Path, tasks: dict[str, dict]) -> Path:
    """Task files; of the expected answers, every other one is what the model writes."""
    draw = random.Random(1)
    sums = [(draw.randint(0, 9), draw.randint(0, 9)) for _ in range(24)]
    (folder / "data").mkdir(parents=True)
    choice, write = [], []
    for a, b in sums:
        answers = [str(a + b), str(a + b + 1), str(abs(a - b)), str(a * b + 20)]
        shown = sorted(answers, key=lambda _: draw.random())
        choice.append({"q": f"{a}+{b}=", "choices": shown, "gold": shown.index(answers[0])})
    for i, text in enumerate(greedy(model, [f"{a}+{b}=" for a, b in sums], 6)):
        write.append({"q": "{}+{}=".format(*sums[i]), "a": text if i % 2 else text + "?"})
    for name, lines in (("choice", choice), ("write", write)):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, task in tasks.items():
        (folder / name).write_text(yaml.safe_dump(task))
    return folder


def run_stage(
    world: Path, out: Path, tasks: list, local: Path | None = None, events: list | None = None, **section
) -> dict:
    """The stage, here; its results."""
    out.mkdir(parents=True)
    config = harness.Config(harness=harness.Harness(tasks=tasks, **section))
    send = (events if events is not None else []).append
    job = Job(out, out.parent / f"{out.name}-scratch", RUNTIME, digests={"tasks": "d" * 64}, send=send)
    harness.run({"model": world / "model", "tasks": local or world / "tasks"}, config, job)
    return json.loads((out / "results.json").read_text())


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]


def by_hand(model: Path, folder: Path) -> dict:
    """The two tasks as a person calls the harness, in the folder, where its relative paths lead."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    result, here = {}, Path.cwd()
    os.chdir(folder)
    try:
        for task, shots, limit in (("sums_choice", 2, None), ("sums_write", None, 12)):
            result[task] = simple_evaluate(
                model="hf",
                model_args={"pretrained": str(model), "dtype": "float32"},
                device="cpu",
                batch_size=8,
                tasks=[task],
                num_fewshot=shots,
                limit=limit,
                task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            )
    finally:
        os.chdir(here)
    kept = ("results", "n-shot", "versions")
    return {t: {k: one[k] for k in kept} | {"samples": one["samples"][t]} for t, one in result.items()}
