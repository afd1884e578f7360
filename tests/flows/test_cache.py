"""The cache as a user meets it: what runs again after a change, and what does not."""

from __future__ import annotations

import json
import shutil
import stat
import time
from pathlib import Path

import pytest

from spin_core.analysis import forecast
from spin_core.config.finetune import Finetune
from spin_core.config.generate import Decoding
from spin_core.store import record


@pytest.fixture
def store(finished, tmp_path: Path) -> Path:
    """A private copy of the finished store."""
    return Path(shutil.copytree(finished[0], tmp_path / "store", symlinks=True))


def test_second_run_everything_is_cached_in_prefects_own_states(run, finished, store) -> None:
    """Catches a key that holds a path or a clock, and a hit that Prefect shows as an ordinary completion."""
    from prefect.client.orchestration import get_client

    before = {step["key"]: step["digest"] for step in finished[1]}
    again = run(store)
    assert {step["state"] for step in again} == {"Cached"}
    assert {step["key"]: step["digest"] for step in again} == before
    # Prefect sends task states as events, which reach the database a moment after the flow has ended.
    with get_client(sync_client=True) as client:
        latest = client.read_flow_runs(sort="START_TIME_DESC", limit=1)[0]
        for _ in range(300):
            runs = [r for r in client.read_task_runs(limit=200) if r.flow_run_id == latest.id]
            if len(runs) == len(again) and all(r.state and r.state.is_final() for r in runs):
                break
            time.sleep(0.1)
    assert len(runs) == len(again)
    assert {r.state.name for r in runs} == {"Cached"}
    key = next(step["key"] for step in again if step["stage"] == "finetune" and step["label"] == "iter 1")
    assert f"finetune[iter 1] {key[:6]}" in {r.name for r in runs}


def test_changed_beta_runs_finetune_and_what_follows_only_as_planned(spinloop, run, store, tiny) -> None:
    """Catches a key that lacks a setting, one that has too many, and a plan that does not show what the run then
    does."""
    setting = "finetune.beta=0.5"
    code, out, _ = spinloop("plan", tiny, "--store", store, "--json", "--set", setting)
    assert code == 0
    plan = json.loads(out)
    would = {(s["stage"], s["label"]) for s in plan if s["state"] == "would run"}
    steps = run(store, setting)
    ran = {(s["stage"], s["label"]) for s in steps if s["state"] == "ran"}
    assert ran == would
    iteration_0 = {(stage, label) for stage, label in ran if "iter 0" in label}
    assert iteration_0 == {("finetune", "iter 0"), ("gate", "iter 0")}
    assert {("evaluate", "θ_1"), ("score", "iter 1, pairs 0"), ("finetune", "iter 1"), ("report", "")} <= ran
    assert {label for stage, label in ran if stage == "generate"} == {
        s["label"] for s in steps if s["stage"] == "generate" and "iter 1" in s["label"]
    }
    assert not {stage for stage, _ in ran} & {"reformat", "sft", "demo_model", "demo_rows"}
    assert ("evaluate", "θ_0") not in ran
    why = next(s["why"] for s in plan if s["stage"] == "finetune" and s["label"] == "iter 0")
    assert why == "finetune.beta: 1.0 → 0.5"


def test_plan_says_what_the_trainings_ahead_can_teach(spinloop, finished, store, tiny) -> None:
    """Catches a plan without the forecast of a score that is there, that of trainings that are cached, of other pairs
    than the newest ones or of another iteration; and one that does not say what is unlikely to pay."""

    def forecasts(setting: str) -> dict[str, str]:
        code, _, err = spinloop("plan", tiny, "--store", store, "--json", "--set", setting)
        assert code == 0, err
        notes = [line.removeprefix("note: ").partition(": ") for line in err.splitlines()]
        return {head: text for head, _, text in notes if head.startswith("iteration ")}

    scores = {step["label"]: step for step in finished[1] if step["stage"] == "score"}
    known = {label: forecast.sentences(step["summary"], Finetune(), Decoding()) for label, step in scores.items()}
    assert all(known.values()) and len({*map(str, known.values())}) == len(known) == 3
    ahead = {t: "{finetune: {lr: 2.0e-4}}" for t in range(2)}
    assert forecasts("seed=3") == {}
    assert forecasts(f"overrides={{0: {ahead[0]}}}") == {"iteration 0": " ".join(known["iter 0, pairs 0"])}
    assert forecasts(f"overrides={{1: {ahead[1]}}}") == {"iteration 1": " ".join(known["iter 1, pairs 1"])}
    root = store / "spinloop-store-v1"
    file = root / "records" / "score" / f"{scores['iter 1, pairs 1']['key']}.json"
    held = record.read(file, root / "trees")
    held.facts["summary"]["forecast"] = {"identical": 0.9, "preferred": 0.08, "entropy": 0.1}
    file.write_bytes(record.encode(held))
    (said,) = forecasts(f"overrides={{1: {ahead[1]}}}").values()
    assert "At best 2.0 % of the pairs teach. This iteration is unlikely to pay: stop here" in said


def test_runtime_settings_change_no_key(spinloop, store, tiny) -> None:
    """Catches a Runtime field that has slipped into a key: users would pay again for another batch size."""
    sets = [
        f"runtime.{name}"
        for name in (
            "micro_tokens=300",
            "score_tokens=99",
            "packing=false",
            "workers=2",
            "generate_batch=5",
            "checkpoint_every=7",
            "stage_timeout=900",
        )
    ]
    code, out, _ = spinloop("plan", tiny, "--store", store, "--json", *[part for s in sets for part in ("--set", s)])
    assert code == 0
    assert {step["state"] for step in json.loads(out)} == {"cached"}


def test_file_deleted_in_a_stored_tree_is_detected_and_recomputed_to_the_same(run, finished, store) -> None:
    """Catches a look-up that trusts the record, and a recomputation that is not the same."""
    step = next(s for s in finished[1] if s["stage"] == "finetune" and s["label"] == "iter 0")
    tree = store / "spinloop-store-v1" / "trees" / step["digest"]
    tree.chmod(tree.stat().st_mode | stat.S_IWUSR)
    (tree / "model.safetensors").unlink()
    again = run(store)
    assert [(s["stage"], s["label"]) for s in again if s["state"] == "ran"] == [("finetune", "iter 0")]
    assert next(s["digest"] for s in again if s["key"] == step["key"]) == step["digest"]
    assert any((store / "spinloop-store-v1" / "quarantine").iterdir())


def test_grown_and_shuffled_dataset_regenerates_only_the_shard_of_the_new_row(
    spinloop, server, tiny, model, tmp_path
) -> None:
    """Catches shards cut by row number, where one inserted row changes every shard after it, and a key with the full
    set in it; and a second set of which the first one's prompts are answered again."""
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"Reverse: {i:04d}", "response": f"{i:04d}"[::-1]} for i in range(100)]
    settings = [
        f"dataset.path={data}",
        "dataset.limit=0",
        "dataset.shard_rows=8",
        "iterations=1",
        "generate.max_new_tokens=2",
        f"model.path={model}",
        "sft=",
    ]
    sets = [part for setting in settings for part in ("--set", setting)]

    def generate_steps(command: str, rows: list[dict]) -> list[dict]:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, out, err = spinloop(command, tiny, "--store", tmp_path / "store", "--json", *sets)
        assert code == 0, err
        result = json.loads(out)
        steps = result if command == "plan" else json.loads(Path(result["folder"], "steps.json").read_text())
        return [step for step in steps if step["stage"] == "generate"]

    first = generate_steps("run", rows)
    assert len(first) > 8
    grown = generate_steps("run", [*rows[::-1], {"prompt": "Reverse: more", "response": "erom"}])
    assert 1 <= sum(step["state"] == "ran" for step in grown) <= 2
    rows[0]["response"] = "another answer"
    edited = generate_steps("plan", [*rows, {"prompt": "Reverse: more", "response": "erom"}])
    assert {step["state"] for step in edited} == {"cached"}, "an answer's edit regenerates nothing"

    more = tmp_path / "more.jsonl"
    more.write_text("".join(json.dumps({"question": f"Sort: {i:03d}", "answer": "0"}) + "\n" for i in range(30)))
    sets += ["--set", "dataset.path=", "--set", "dataset.test_limit=0"]
    sets += ["--set", f"dataset.sets=[{{path: {data}, test_limit: 12}}, {{path: {more}}}]"]
    mixed = generate_steps("plan", [*rows, {"prompt": "Reverse: more", "response": "erom"}])
    fresh = [step for step in mixed if step["state"] != "cached"]
    assert len(mixed) - len(fresh) == len(grown) and sum(step["summary"]["rows"] for step in fresh) == 30


@pytest.fixture(scope="module")
def places(tmp_path_factory, model) -> dict[str, Path]:
    """Two folders with the same model and data."""
    made = {name: tmp_path_factory.mktemp(name) for name in ("here", "there")}
    rows = [{"prompt": f"Sort: {i:03d}", "response": "".join(sorted(f"{i:03d}"))} for i in range(40)]
    for place in made.values():
        shutil.copytree(model, place / "model")
        (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def test_copied_source_is_a_full_hit_and_tokens_are_made_once(spinloop, server, tiny, places) -> None:
    """Catches a path of this machine in a key, a record or an output: a colleague's copy of the data would miss; a
    second iteration that tokenizes again; and a changed chat template that is not seen, or that reads the rows again.
    """
    store, there = places["here"] / "store", places["there"]

    def steps(command: str, place: Path, iterations: int) -> list[dict]:
        settings = [f"dataset.path={place / 'data.jsonl'}", f"model.path={place / 'model'}", "sft="]
        sets = [part for one in [*settings, f"iterations={iterations}"] for part in ("--set", one)]
        code, out, err = spinloop(command, tiny, "--store", store, "--json", *sets)
        assert code == 0, err
        return json.loads(out)

    steps("run", places["here"], 1)
    assert {step["state"] for step in steps("plan", there, 1)} == {"cached"}
    root = store / "spinloop-store-v1"
    files = [path for folder in ("trees", "records") for path in (root / folder).rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if str(there.parent).encode() in path.read_bytes()]

    cached = [step["stage"] for step in steps("plan", there, 2) if step["state"] == "cached"]
    assert cached.count("tokenize") == 1 and "finetune" in cached

    template = there / "model" / "chat_template.jinja"
    template.write_text("{# another #}" + template.read_text())
    plan = steps("plan", there, 1)
    assert [step["stage"] for step in plan if step["state"] == "cached"] == ["reformat"]
    (why,) = (step["why"] for step in plan if step["stage"] == "tokenize")
    assert "tokenizer" in why
