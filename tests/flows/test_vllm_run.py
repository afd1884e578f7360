"""Full runs with `generate.engine=vllm`, by the commands that the README gives, in a bounded form."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from spin_core.runtime import vllm_env
from tests.faults.flow.storm import Marked, command

pytestmark = [
    pytest.mark.skipif(not vllm_env.place("").exists(), reason="vLLM's environment is not there: make vllm-env"),
    pytest.mark.timeout(900),
    pytest.mark.full,
]
SMOLLM2 = os.environ.get("SPINLOOP_TEST_SMOLLM2", "")
GSM8K = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"


def _run(profile: str, store: Path, *settings: str) -> tuple[list[dict], dict]:
    """The ledger and the throughput of a run that must finish and leave no process."""
    run = Marked(command(Path(profile), store, "generate.engine=vllm", *settings))
    code, out = run.finish(timeout=800)
    print(out)
    assert code == 0, out
    assert not run.gone()
    latest = store / "spinloop-store-v1" / "latest"
    return json.loads((latest / "steps.json").read_text()), json.loads((latest / "throughput.json").read_text())


def test_demo_runs_with_vllm_and_its_answers_are_the_transformers_engines(server, tmp_path) -> None:
    """Catches an engine that only its own tests can run, and a pair set that depends on the engine."""
    small = ("iterations=1", "dataset.limit=600", "dataset.test_limit=50", "dataset.shard_rows=200", "control=")
    steps, _ = _run("demo-tasks", tmp_path / "store", *small)
    assert all(step["state"] == "ran" for step in steps)
    generated = [step["summary"] for step in steps if step["stage"] == "generate"]
    assert sum(summary["answers"] for summary in generated) == 650
    assert sum(summary["load_seconds"] > 0 for summary in generated) <= 4, "loaded once in each of two workers"
    again = Marked(command(Path("demo-tasks"), tmp_path / "store", *small))
    assert again.finish(timeout=600)[0] == 0
    latest = tmp_path / "store" / "spinloop-store-v1" / "latest"
    theirs = _answers(tmp_path / "store", steps)
    ours = _answers(tmp_path / "store", json.loads((latest / "steps.json").read_text()))
    same = sum(ours[id] == theirs[id] for id in ours)
    print(f"{same} of {len(ours)} answers are the same in both engines")
    assert same >= 0.99 * len(ours) and ours.keys() == theirs.keys()


def test_engine_lives_through_all_iterations_and_changes_nothing(server, tmp_path) -> None:
    """Catches an engine that is started in each iteration though it is kept, answers (also evaluate's) that depend on
    whether it is, and evaluate's figures or answers that come from another engine than generate's."""
    small = ("iterations=2", "dataset.limit=200", "dataset.test_limit=20", "dataset.shard_rows=100", "control=")
    small = (*small, "runtime.workers=1", "evaluate.max_new_tokens=32", "generate.max_new_tokens=32")
    small = (*small, "finetune.warmup_ratio=0")  # an iteration has one step
    kept, _ = _run("demo-tasks", tmp_path / "kept", *small)
    new, _ = _run("demo-tasks", tmp_path / "new", *small, "runtime.keep_engine=false")
    assert [step["key"] for step in kept] == [step["key"] for step in new]
    assert _answers(tmp_path / "kept", kept) == _answers(tmp_path / "new", new)
    of = {(step["stage"], step["label"]): step["digest"] for step in kept}
    assert all(of[step["stage"], step["label"]] == step["digest"] for step in new if step["stage"] == "generate")
    asked = [step["summary"] for step in kept if step["stage"] in ("generate", "evaluate")]
    assert sum(one.get("reloaded", 0) > 0 for one in asked) >= 2 and not any("engine_restarts" in one for one in asked)
    assert {one["engine"].split()[0] for one in asked} == {"vllm"}
    seconds = [one["load_seconds"] for one in asked if one["load_seconds"]]
    print(f"started in {seconds[0]:.1f} s, then took weights in {seconds[1:]}")
    assert not any("reloaded" in step["summary"] for step in new)


def _answers(store: Path, steps: list[dict]) -> dict[str, list[int]]:
    """Token ids of each row's answer in a run."""
    answers = {}
    for step in steps:
        if step["stage"] == "generate":
            file = store / "spinloop-store-v1" / "trees" / step["digest"] / "answers.jsonl"
            answers.update({line["id"]: line["token_ids"] for line in map(json.loads, file.read_text().splitlines())})
    return answers


@pytest.mark.skipif(not SMOLLM2, reason="SPINLOOP_TEST_SMOLLM2 names no directory of SmolLM2-135M-Instruct")
@pytest.mark.skipif(not GSM8K.is_dir(), reason="../shared/data/gsm8k is not there")
def test_gsm8k_smollm2_runs_with_vllm(server, tmp_path) -> None:
    """Catches an engine that works for toys only."""
    local = [f"model.path={SMOLLM2}", f"dataset.path={GSM8K / 'train.jsonl'}", "dataset.test_split="]
    steps, through = _run(
        "gsm8k-smollm2", tmp_path / "store", *local, f"dataset.test_path={GSM8K / 'test.jsonl'}",
        "dataset.limit=24", "dataset.test_limit=8", "generate.max_new_tokens=48", "evaluate.exact_match=",
    )  # fmt: skip
    generated = [step["summary"] for step in steps if step["stage"] == "generate"]
    assert sum(summary["answers"] for summary in generated) == 32
    assert through
