"""harness: lm_eval really run, offline, on the demo's untrained model and tasks of a local folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flows.plan import check
from flows.stages import _ref
from spin_core.analysis.definitions import HARNESS
from spin_core.config.harness import PRESETS
from spin_core.config.profile import load_profile
from spin_core.config.runtime import Runtime
from spin_core.engines.harness import calls, tables
from spin_core.errors import BadInput
from spin_core.runtime import gpus, vllm_env
from spin_core.runtime.child import Children
from spin_core.runtime.step import SHARE, KeyedStep, Step, compute
from spin_core.sources.resolve import Ref, resolve
from spin_core.stages import harness
from spin_core.store.keys import key_of
from spin_core.store.store import Store
from tests.stages.harness_world import CHOICE, RUNTIME, TASKS, WRITE, make_folder, rows_of, run_stage


@pytest.fixture(scope="module")
def world(harness_world: Path) -> Path:
    return harness_world


def test_numbers_are_those_of_lm_eval_by_hand(world: Path) -> None:
    """Catches a stage that evaluates with other shots, seeds, limits or precision than lm_eval does by itself, that
    reports another metric than was requested, and a row with another item's value."""
    results, hand = (
        json.loads((world / "out" / "results.json").read_text()),
        json.loads((world / "by_hand.json").read_text()),
    )
    assert (results["lm_eval"], results["preset"], results["backend"]) == ("0.4.13", "", "hf")
    for task, metric in (("sums_choice", "acc_norm,none"), ("sums_write", "exact_match,whole")):
        line, name, filter_name = results["tasks"][task], *metric.split(",")
        theirs = hand[task]["results"][task]
        assert line["metric"] == metric
        assert (line["value"], line["stderr"]) == (theirs[metric], theirs[f"{name}_stderr,{filter_name}"])
        assert line["num_fewshot"] == hand[task]["n-shot"][task] and line["version"] == hand[task]["versions"][task]
        items = [one for one in hand[task]["samples"] if one["filter"] == filter_name]
        ours = [row["value"] for row in rows_of(world / "out") if row["task"] == task]
        assert ours == [one[name] for one in items] and len(set(ours)) == 2
        logged = [json.loads(s) for s in (world / "out" / "samples" / f"{task}.jsonl").read_text().splitlines()]
        assert [one["prompt_hash"] for one in logged] == [one["prompt_hash"] for one in hand[task]["samples"]]
        assert [one["arguments"]["gen_args_0"]["arg_0"] for one in logged] == [
            one["arguments"][0][0] for one in hand[task]["samples"]
        ]
    assert results["average"] == sum(line["value"] for line in results["tasks"].values()) / 2
    of_groups = {"mean", "subtasks"}
    assert {one.name for one in HARNESS} == {*results["tasks"]["sums_write"], *of_groups}  # docs/metrics.md


def test_answers_are_the_models_own(world: Path) -> None:
    """Catches agreement of two wrong numbers: half of the expected answers are what transformers alone generates."""
    line = json.loads((world / "out" / "results.json").read_text())["tasks"]["sums_write"]
    assert (line["value"], line["rows"], line["of"]) == (0.5, 12, 24)
    rows = [row for row in rows_of(world / "out") if row["task"] == "sums_write"]
    assert [row["id"] for row in rows] == [f"sums_write/{i}" for i in range(12)]
    assert [row["value"] for row in rows] == [i % 2 for i in range(12)]
    assert line["dataset"] == {"path": "data/write.jsonl", "revision": "d" * 64}


def test_another_run_gives_the_same_bytes_and_a_task_does_not_hang_on_its_neighbours(world: Path, tmp_path) -> None:
    """Catches a clock, path or order of a set in the files, and examples drawn from a generator that the task before
    has moved."""
    run_stage(world, tmp_path / "again", TASKS)
    for name in ("results.json", "rows.jsonl", "samples/sums_choice.jsonl", "samples/sums_write.jsonl"):
        assert (tmp_path / "again" / name).read_bytes() == (world / "out" / name).read_bytes(), name
        assert str(world).encode() not in (tmp_path / "again" / name).read_bytes()
    turned = run_stage(world, tmp_path / "turned", TASKS[::-1])
    assert turned["tasks"] == json.loads((world / "out" / "results.json").read_text())["tasks"]
    other = run_stage(world, tmp_path / "other", TASKS[:1], seeds=[0, 1234, 1234, 7])
    assert other["tasks"]["sums_choice"]["prompts_sha256"] != turned["tasks"]["sums_choice"]["prompts_sha256"]


def test_drawn_answers_do_not_hang_on_the_tasks_before(world: Path, tmp_path) -> None:
    """Catches a generator that is seeded once for all tasks: a task that samples would then answer otherwise in
    another list."""
    how = {"until": ["|"], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}
    folder = Path(shutil.copytree(world / "tasks", tmp_path / "tasks"))
    for name in ("drawn_a", "drawn_b"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**WRITE, "task": name, "generation_kwargs": how}))
    for tasks in (["drawn_a", "drawn_b"], ["drawn_b"]):
        run_stage(world, tmp_path / str(len(tasks)), tasks, folder)
    both, alone = ((tmp_path / n / "samples" / "drawn_b.jsonl").read_bytes() for n in ("2", "1"))
    assert both == alone
    drawn = {json.loads(line)["resps"][0][0] for line in both.splitlines()}
    assert len(drawn) > 12, "it did sample"


def test_progress_counts_every_request(world: Path, tmp_path) -> None:
    """Catches a bar that stands still for the hours that a benchmark takes, or ends before its total."""
    events: list[dict] = []
    run_stage(world, tmp_path / "out", TASKS, events=events)
    closed = {one["label"]: (one["done"], one["total"]) for one in events if one.get("closed")}
    assert closed == {"sums_choice": (96, 96), "sums_write": (12, 12)}


def test_place_of_the_items_is_the_folder_or_the_hub(tmp_path) -> None:
    """Catches a crash after the evaluation, where a task of lm_eval's own with data files stands beside local ones."""
    here, url = str(tmp_path.resolve() / "a.jsonl"), "hf://datasets/a/b.jsonl"
    files: list[dict] = [{"x": [here]}, {"x": url}, {"x": here, "y": "/else/a.csv"}, {"x": "a.csv"}]
    given = [SimpleNamespace(dataset_kwargs={"data_files": f}, dataset_path="json", dataset_name="") for f in files]
    datasets = [tables._dataset(SimpleNamespace(config=one), tmp_path, "d" * 64) for one in given]
    assert datasets == [{"path": "a.jsonl", "revision": "d" * 64}, *[{"path": "json", "revision": ""}] * 3]


@pytest.mark.parametrize(("stage", "shared"), [("harness", 1), ("generate", SHARE)])
def test_engine_over_four_gpus_holds_four(monkeypatch, stage, shared) -> None:
    """Catches a benchmark in vLLM that counts one GPU of its four, by half; and four for transformers' one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    gpus._visible.cache_clear()
    result = [gpus.held(stage, Runtime(tensor_parallel=4), share) for share in (SHARE, 1)]
    gpus._visible.cache_clear()
    assert [(one["gpus"], one["shared"]) for one in result] == [(4, shared), (1, 1)]


def _key(world: Path, folder: Path, tasks: list, **section) -> str:
    config = harness.Config(harness=harness.Harness(tasks=tasks, **section))
    inputs = {"model": resolve(str(world / "model"), "model", "", Path(), "")}
    return key_of(Step(harness, "", config).payload(inputs | {"tasks": resolve(str(folder), "tasks", "", Path(), "")}))


def test_key_moves_with_what_is_requested_and_only_with_that(world: Path, tmp_path) -> None:
    """Catches results of older data or task files served for new ones, and a benchmark of hours run again because a
    folder was moved, a bytecode file appeared, or the same thing is spelt in another way."""
    folder = Path(shutil.copytree(world / "tasks", tmp_path / "tasks"))
    key = _key(world, folder, ["sums_choice"])
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (moved / "__pycache__").mkdir()
    (moved / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert _key(world, moved, [{"task": "sums_choice"}], include_path=str(moved)) == key
    limited = _key(world, folder, [{"task": "sums_choice", "limit": 3}])
    assert limited == _key(world, folder, ["sums_choice"], limit=3) != key
    for changes in (
        {"num_fewshot": 1}, {"chat_template": True}, {"backend": "vllm"}, {"lm_eval": "0.4.12"}, {"max_length": 64},
        {"seeds": [1, 1234, 1234, 1234]},
    ):  # fmt: skip
        assert _key(world, folder, ["sums_choice"], **changes) != key, changes
    (folder / "choice.yaml").write_text(yaml.safe_dump({**CHOICE, "target_delimiter": " "}))
    assert _key(world, folder, ["sums_choice"]) != key
    with (moved / "data" / "choice.jsonl").open("a") as file:
        file.write("\n")
    assert _key(world, moved, ["sums_choice"]) != key


def test_stage_runs_in_a_child_and_is_cached(world: Path, tmp_path) -> None:
    """Catches a stage that only works in a process that has lm_eval's state, and a folder that was read from where it
    is named, not from where it was hashed."""
    store, config = Store(tmp_path / "store"), harness.Config(harness=harness.Harness(tasks=TASKS))
    inputs = {
        "model": resolve(str(world / "model"), "model", "", Path(), ""),
        "tasks": resolve(str(world / "tasks"), "tasks", "", Path(), ""),
    }
    with Children(1) as children:
        record, cached = compute(
            store, KeyedStep(Step(harness, "θ_0", config), inputs), RUNTIME, children, lambda event: None
        )
        again = compute(store, KeyedStep(Step(harness, "θ_0", config), inputs), RUNTIME, children, lambda event: None)
    assert (cached, again[1]) == (False, True)
    tree = store.tree(record.digest)
    assert (tree / "rows.jsonl").read_bytes() == (world / "out" / "rows.jsonl").read_bytes()
    line = json.loads((tree / "results.json").read_text())["tasks"]["sums_write"]
    assert line["dataset"]["revision"] == inputs["tasks"].digest
    assert record.facts["summary"]["sums_write"] == 0.5


@pytest.fixture(scope="module")
def grouped(world: Path) -> Path:
    """A folder with a group of two tasks of different size, from one template."""
    small = {**CHOICE, "task": "sums_small", "dataset_kwargs": {"data_files": {"test": "few.jsonl"}}}
    group = {"group": "sums", "task": ["sums_choice", "sums_small"], "metadata": {"version": 3}}
    template = {name: value for name, value in CHOICE.items() if name != "task"}
    files = {"_template": template, "g.yaml": group, "c.yaml": {"include": "_template", "task": "sums_choice"}}
    folder = make_folder(world / "grouped", world / "model", files)
    lines = (folder / "data" / "choice.jsonl").read_text().splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(lines[:5]))
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    return folder


@pytest.mark.parametrize(("mean", "weights"), [("items", (24, 5)), ("subtasks", (1, 1))])
def test_group_is_the_mean_that_was_requested(world: Path, grouped: Path, tmp_path, mean, weights) -> None:
    """Catches the leaderboard's MMLU weighed by size (or lm_eval's by subject), subtasks that are lost, and an average
    over subtasks in place of tasks."""
    results = run_stage(
        world, tmp_path / "out", [{"task": "sums", "metric": "acc", "mean": mean}, "sums_write"][:1], grouped
    )
    line = results["tasks"]["sums"]
    parts = [line["subtasks"][name]["value"] for name in ("sums_choice", "sums_small")]
    expected = sum(w * value for w, value in zip(weights, parts, strict=True)) / sum(weights)
    assert line["value"] == results["average"] == pytest.approx(expected, abs=1e-12) and parts[0] != parts[1]
    assert (line["rows"], line["of"], line["num_fewshot"], line["version"]) == (29, 29, 0, "3")
    rows = rows_of(tmp_path / "out")
    assert [row["task"] for row in rows].count("sums_small") == 5 and len({row["id"] for row in rows}) == 29


def test_task_and_its_group_are_refused_together(world: Path, grouped: Path, tmp_path) -> None:
    """Catches rows of one id twice, of a task that is listed and is in a listed group."""
    with pytest.raises(BadInput, match="sums_choice is in the list twice, once in sums_choice; leave one out"):
        run_stage(world, tmp_path / "out", ["sums", "sums_choice"], grouped)


def test_preset_is_the_papers_and_can_be_changed_in_part() -> None:
    """Catches a preset with another task, shot or metric than the paper's Table 2 (few-shot 25/0/5/5/10/5), an entry
    that loses its shots when only its limit is set, and a config that changes when it is read again."""
    tasks = [{"task": "gsm8k", "limit": 4}, "sciq"]
    config = harness.Config(harness=harness.Harness(preset="open-llm-leaderboard-v1", tasks=tasks, num_fewshot=3))
    shown = {one.task: (one.num_fewshot, one.metric, one.limit) for one in config.harness.tasks}
    assert shown == {
        "arc_challenge": (25, "acc_norm", None),
        "truthfulqa_mc2": (0, "acc", None),
        "winogrande": (5, "acc", None),
        "gsm8k": (5, "exact_match,strict-match", 4),
        "hellaswag": (10, "acc_norm", None),
        "mmlu": (5, "acc", None),
        "sciq": (3, "", None),
    }
    assert {one.task: one.mean for one in config.harness.tasks}["mmlu"] == "subtasks"
    assert harness.Config.model_validate(config.model_dump(mode="json")) == config


def test_presets_name_tasks_and_metrics_that_lm_eval_has() -> None:
    """Catches a name or filter that only a run with the hub's data would find wrong, hours later."""
    index = calls._shipped()
    for entry in (entry for preset in PRESETS.values() for entry in preset):
        result = index[entry["task"]].cfg
        metric, _, filter_name = entry["metric"].partition(",")
        listed = {one["metric"] for one in result.get("metric_list") or result["aggregate_metric_list"]}
        assert metric in listed, entry
        assert not filter_name or filter_name in {one["name"] for one in result["filter_list"]}
        assert (entry.get("mean") == "subtasks") == (index[entry["task"]].kind.name == "GROUP")


def test_work_pool_takes_a_folder_of_tasks_by_name(world: Path) -> None:
    """Catches a stage started by hand on a work pool that hashes its task folder as a dataset."""
    ref = _ref("tasks", str(world / "tasks"))
    assert isinstance(ref, Ref) and ref.kind == "tasks" and ref == resolve(str(world / "tasks"), "tasks", "", Path())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["harness.lm_eval=0.4.12"], "0.4.12 is requested and lm_eval 0.4.13 is installed"),
        (["harness.backend=vllm"], "there is no interpreter"),
        (["harness.include_path=absent/tasks"], "there is no folder absent/tasks"),
    ],
)
def test_run_that_cannot_evaluate_is_refused_before_it_begins(tmp_path, monkeypatch, settings, message) -> None:
    """Catches a run that trains for a day and then finds that its benchmarks cannot be computed here."""
    monkeypatch.setenv("SPINLOOP_VLLM_PYTHON", str(tmp_path / "absent"))
    config, base = load_profile("demo-tasks", ["harness.tasks=[sciq]", *settings])
    with pytest.raises(BadInput, match=message):
        check(config, str(tmp_path / "store"), base)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children(1) as started:
        yield started


@pytest.mark.skipif(not vllm_env.place("").exists(), reason="vLLM's environment is not there: make vllm-env")
@pytest.mark.timeout(600)
def test_vllm_back_end_gives_the_same_answers(world: Path, tmp_path, children: Children) -> None:
    """Catches a back end that evaluates something else, or whose log-probs are of other tokens: the answers are the
    same, the log-probs differ by rounding."""
    store = Store(tmp_path / "store")
    config = harness.Config(harness=harness.Harness(tasks=TASKS, backend="vllm"))
    inputs = {
        "model": resolve(str(world / "model"), "model", "", Path(), ""),
        "tasks": resolve(str(world / "tasks"), "tasks", "", Path(), ""),
    }
    runtime = Runtime(device="cpu", threads=1, vllm_kv_gib=1, requests_in_flight=8)
    record, _ = compute(store, KeyedStep(Step(harness, "θ_0", config), inputs), runtime, children, lambda event: None)
    tree = store.tree(record.digest)
    assert "vllm" in record.facts["summary"]["engine"]
    special = {
        f"sums_write/{one['doc_id']}"
        for one in map(json.loads, (tree / "samples" / "sums_write.jsonl").read_text().splitlines())
        if one["resps"][0][0].startswith("<")  # of `<|user|>`, which is text here and nothing with transformers
    }
    same, expected = ([r for r in rows_of(place) if r["id"] not in special] for place in (tree, world / "out"))
    assert same == expected and len(same) > 24 + 8
    theirs, ours = (_logps(place / "samples" / "sums_choice.jsonl") for place in (tree, world / "out"))
    assert theirs == pytest.approx(ours, abs=1e-3) and len(ours) == 96


def _logps(file: Path) -> list[float]:
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    return [float(one[0]) for sample in samples for one in sample["filtered_resps"]]
