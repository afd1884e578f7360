"""harness: what is refused, in one sentence, before anything is computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from spin_core.engines.harness import calls
from spin_core.errors import BadInput
from spin_core.sources.resolve import resolve
from spin_core.stages import harness
from tests.stages.harness_world import CHOICE, run_stage


@pytest.fixture(scope="module")
def world(harness_world: Path) -> Path:
    return harness_world


def _with(world: Path, tmp_path: Path, name: str, content: str) -> Path:
    folder = Path(shutil.copytree(world / "tasks", tmp_path / "tasks"))
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    return folder


BAD_FILES = {
    "python": ("utils.py", "import os", r"utils\.py: nothing that comes with tasks runs here"),
    "function": ("f.yaml", "task: x\ndoc_to_text: !function utils.text", r"f\.yaml: line 2: the tag '!function' would"),
    "python tag": ("f.yaml", "task: !!python/name:os.system ''", "would run code"),
    "hub metric": ("f.yaml", "task: x\nmetric_list: [{metric: bertscore, hf_evaluate: true}]", "`hf_evaluate` would"),
    "class": ("f.yaml", "task: x\nclass: mine", "`class` would run code"),
    "pickles": (
        "f.yaml",
        "task: x\ndataset_path: pandas\ndataset_kwargs: {data_files: data/choice.jsonl}",
        "is pandas",
    ),
    "absolute": (
        "f.yaml",
        "task: x\ndataset_path: json\ndataset_kwargs: {data_files: /etc/passwd}",
        "no file /etc/pass",
    ),
    "outside": ("f.yaml", "task: x\ndataset_path: json\ndataset_kwargs: {data_files: ../o.jsonl}", r"no file \.\./o"),
    "other machine": (
        "f.yaml",
        "task: x\ndataset_path: json\ndataset_kwargs: {data_files: 'https://x/y'}",
        "no file https",
    ),
    "no data": ("f.yaml", "task: x\ndataset_path: json", r"needs dataset_kwargs\.data_files"),
    "include": ("f.yaml", "include: ../../secret.yaml\ntask: x", "there is no such file in"),
    "includes itself": ("f.yaml", "include: f.yaml\ntask: x", "includes itself"),
    "broken": ("f.yaml", "task: x\n  y: [", r"f\.yaml: line \d: not valid YAML"),
    "list": ("f.yaml", "- task", "a task file is a mapping"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_folder_that_requests_code_or_data_elsewhere_is_refused(world: Path, tmp_path, case) -> None:
    """Catches code run because a data folder requested it, and data that no key has; refused when it is hashed, before
    anything runs."""
    name, content, message = BAD_FILES[case]
    folder = _with(world, tmp_path, name, content)
    (tmp_path / "o.jsonl").write_text("{}\n")
    with pytest.raises(BadInput, match=message) as refused:
        resolve(str(folder), "tasks", "", Path(), "")
    assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match=message):  # by hand, without its digest
        run_stage(world, tmp_path / "out", ["sums_choice"], folder)


def test_template_cannot_reach_python(world: Path, tmp_path) -> None:
    """Catches lm_eval's own template environment, in which a task file's text runs any Python."""
    mark = tmp_path / "ran"
    text = "{{ cycler.__init__.__globals__.os.system('touch " + str(mark) + "') }}{{q}}"
    folder = _with(world, tmp_path, "evil.yaml", yaml.safe_dump({**CHOICE, "task": "evil", "doc_to_text": text}))
    with pytest.raises(BadInput, match="a template of the task evil reaches for Python") as refused:
        run_stage(world, tmp_path / "out", ["evil"], folder)
    assert not mark.exists() and "\n" not in str(refused.value)


def test_metric_that_lm_eval_has_not_is_refused(world: Path, tmp_path) -> None:
    """Catches lm_eval's search for a metric's code on the hub and in the current folder."""
    task = {**CHOICE, "task": "x", "metric_list": [{"metric": "mine", "aggregation": "mean", "higher_is_better": True}]}
    with pytest.raises(BadInput, match=r"x\.yaml: lm_eval has no metric mine"):
        run_stage(world, tmp_path / "out", ["x"], _with(world, tmp_path, "x.yaml", yaml.safe_dump(task)))


@pytest.mark.parametrize(
    ("tasks", "section", "message"),
    [
        (["sums_choice"], {"lm_eval": "0.4.12"}, r"0\.4\.12 is requested and lm_eval 0\.4\.13 is installed; `pip inst"),
        (["sums_chioce"], {}, r"no task sums_chioce in lm_eval 0\.4\.13; did you mean sums_choice\?"),
        (
            ["sums_write", {"task": "sums_choice", "metric": "f1"}],
            {},
            "sums_choice has no metric f1; it has acc,none; ac",
        ),
        ([{"task": "sums_write", "metric": "exact_match,none"}], {}, "it has exact_match,first; exact_match,whole"),
        (
            ["sums_write", "sciq"],
            {},
            r"the data of task sciq is not on this machine .*; go online once, or use local task files",
        ),
    ],
)
def test_what_cannot_be_computed_is_one_sentence(world: Path, tmp_path, tasks, section, message) -> None:
    """Catches numbers of another release of lm_eval, its tracebacks, and an hour of the first task before the second
    one is looked at."""
    events: list[dict] = []
    with pytest.raises(BadInput, match=message) as refused:
        run_stage(world, tmp_path / "out", tasks, events=events, **section)
    assert "\n" not in str(refused.value) and not events


@pytest.mark.parametrize("token", ["hf_" + "a1" * 17, "no-usual-token"])
def test_what_others_raise_is_reported_without_the_token(monkeypatch, token) -> None:
    """Catches a token in a log and in the run's state, because a client quotes the header that it sent."""
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(BadInput, match="lm_eval cannot run the task mine") as refused, calls._errors("mine"):
        raise ValueError(f"{'x' * 150} illegal header value b'Bearer {token}' {'y' * 150}")
    assert token not in str(refused.value) and "(token)" in str(refused.value)
    with pytest.raises(BadInput) as refused, calls._errors("mine"):
        raise ValueError("x" * 190 + token)  # cut in the middle it would be known to no mask
    assert token[:6] not in str(refused.value)


def test_missing_folder_and_folder_without_tasks_are_refused(tmp_path) -> None:
    """Catches an include_path that is looked for on the hub, or passed over."""
    with pytest.raises(BadInput, match=r"harness\.include_path: there is no folder mine/tasks"):
        resolve("mine/tasks", "tasks", "", tmp_path, "")
    with pytest.raises(BadInput, match=r"has no \.yaml file"):
        resolve(str(tmp_path), "tasks", "", Path(), "")
    (tmp_path / "t.yaml").write_text("task: x")
    with pytest.raises(BadInput, match="is no folder"):
        resolve(str(tmp_path / "t.yaml"), "tasks", "", Path(), "")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, "name at least one task in tasks, or a preset"),
        ({"tasks": ["a", {"task": "a", "limit": 3}]}, "the task a is listed twice"),
        ({"tasks": ["../a"]}, "match pattern"),
        ({"tasks": [{"task": "a", "limit": 0}]}, "greater than or equal to 1"),
        ({"tasks": [{"task": "a", "shots": 1}]}, "Extra inputs"),
        ({"tasks": ["a"], "seeds": [1]}, "at least 4"),
    ],
)
def test_section_refuses_what_means_nothing(section, message) -> None:
    """Catches a run of hours that then has nothing to evaluate, or evaluates a task twice."""
    with pytest.raises(ValueError, match=message):
        harness.Harness(**section)
