"""`spinloop evaluate`: models of runs measured with another setting, with the keys that an ordinary run has."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.evaluation_run import _count_once
from spin_core.job import Entry
from spin_core.report.run_facts import read_run
from spin_core.store.keys import payload
from spin_core.store.store import Store
from tests.flows.fixtures import TINY
from tests.stages.harness_world import CHOICE

WARM = ("--set", "evaluate.temperatures=[0.3]")


@pytest.fixture
def store(finished: tuple[Path, list[dict]], tmp_path: Path) -> Path:
    """A store with the tiny run."""
    return Path(shutil.copytree(finished[0], tmp_path / "store", symlinks=True))


@pytest.fixture
def evaluate(spinloop, server) -> Callable[..., Any]:
    """The command on a store: its line of JSON."""

    def call(store: Path, *given: object) -> Any:
        code, out, err = spinloop("evaluate", "--store", store, "--json", *given)
        assert code == 0, err
        return json.loads(out)

    return call


def root(store: Path) -> Path:
    return store / "spinloop-store-v1"


def page(made: dict) -> dict:
    """The figures beside the page."""
    return json.loads(Path(made["page"]).with_suffix(".json").read_text())


def entry(steps: list[dict], stage: str, label: str) -> dict:
    return next(step for step in steps if (step["stage"], step["label"]) == (stage, label))


def test_ordinary_run_has_what_was_evaluated_and_the_other_way(evaluate, run, store: Path) -> None:
    """Catches keys that differ from the ordinary run's: every GPU hour would be paid again; an evaluation that trains
    or answers training prompts; and a run that is the latest because its models were measured again."""
    before = (root(store) / "latest").readlink()
    run(store, "iterations=1", "finetune.beta=0.5", "evaluate.max_new_tokens=6")
    latest, name = (root(store) / "latest").readlink(), before.name
    records = {file.parent.name: 0 for file in root(store).glob("records/*/*.json")}
    made = evaluate(store, name, *WARM)
    assert (made["ran"], made["cached"]) == (3, 0)
    assert made["models"] == {"cached": 0, "measured": 3, "left_out": 0, "failed": 0}
    assert {file.parent.name for file in root(store).glob("records/*/*.json")} == records.keys()
    assert (root(store) / "latest").readlink() == latest != before
    ordinary = run(store, "evaluate.temperatures=[0.3]")
    assert {step["state"] for step in ordinary if step["stage"] == "evaluate"} == {"Cached"}
    assert {step["stage"] for step in ordinary if step["state"] == "ran"} == {"gate", "report"}
    run(store, "evaluate.sampled=false")
    assert evaluate(store, name, "--set", "evaluate.sampled=false")["models"]["cached"] == 3
    for one in page(made)["models"]:
        assert one["figures"]["repetition/t0.3"]["rows"] == 12 and one["made"]


@pytest.fixture(scope="module")
def given(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A profile whose θ_0 is a folder that says how it is deployed, with controls and settings of one iteration; and
    that folder."""
    place = tmp_path_factory.mktemp("given")
    folder = Path(shutil.copytree(model, place / "model"))
    said = json.loads((folder / "generation_config.json").read_text())
    warm = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(said | warm))
    changed = {
        "name": "given", "model": {"path": str(folder)}, "sft": None, "control": TINY["sft"],
        "overrides": {1: {"evaluate": {"max_new_tokens": 6}, "finetune": {"beta": 0.5}}},
    }  # fmt: skip
    path = place / "given.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changed}))
    return path, folder


def test_model_given_as_a_folder_is_named_and_its_steps_have_the_runs_keys(
    evaluate, spinloop, server, given, model: Path, tmp_path: Path
) -> None:
    """Catches a decoder of the deployed model, settings of an iteration, a control or a θ_0 to measure margins against
    that the keys forget; and a model that is left out without a word, or that keeps the others from being measured."""
    (path, folder), store = given, tmp_path / "store"
    code, out, err = spinloop("run", path, "--store", store, "--json")
    assert code == 0, err
    name = json.loads(out)["run"]
    made = evaluate(store, name, *WARM)
    assert made["models"] == {"cached": 0, "measured": 3, "left_out": 2, "failed": 0}, "θ_1 and two controls"
    assert len(made["lacks"]) == 2 and all("--source" in text for text in made["lacks"])
    assert "θ_2: evaluate left out: θ_0, which its margins are measured against" in made["lacks"][1]
    made = evaluate(store, name, *WARM, "--source", folder)
    assert made["models"] == {"cached": 3, "measured": 2, "left_out": 0, "failed": 0}
    assert all("exact_match/deployed" in one["figures"] for one in page(made)["models"])
    code, out, err = spinloop("plan", path, "--store", store, "--json", *WARM)
    planned = [step for step in json.loads(out) if step["stage"] == "evaluate"]
    assert "θ_2 of 1 run keeps settings of its iteration" in page(made)["notes"][0]
    assert len(planned) == 5 and {step["state"] for step in planned} == {"cached"}
    code, _, err = spinloop("run", path, "--store", store, "--json", "--set", "evaluate.deployed=false")
    assert code == 0, err
    listed = evaluate(store, name, "--set", "evaluate.deployed=false", "--plan")
    assert [(one["model"], one["state"]) for one in listed] == [
        (label, "cached") for label in ("θ_0", "θ_1", "θ_2", "SFT instead of 1 iter", "SFT instead of 2 iter")
    ]
    listed = evaluate(store, "latest", *WARM, "--set", "evaluate.deployed=true", "--plan")
    assert {one["state"] for one in listed} == {"cached"}, "of the model itself, as no record of this run says it"
    code, _, err = spinloop("evaluate", name, "--store", store, *WARM, "--source", model)
    assert code == 2 and "none of these runs was given this model" in err


def test_model_that_is_gone_is_named_and_the_others_are_measured(evaluate, finished, store: Path) -> None:
    """Catches a traceback or an evaluation that ends at the first model that gc removed, a count without it, and a
    model whose weights were damaged and that is measured all the same."""
    gone, damaged = (entry(finished[1], "finetune", f"iter {t}") for t in (0, 1))
    (root(store) / f"records/finetune/{gone['key']}.json").unlink()
    shutil.rmtree(root(store) / "trees" / gone["digest"])
    made = evaluate(store, "latest", *WARM)
    assert made["models"] == {"cached": 0, "measured": 2, "left_out": 1, "failed": 0}
    assert [one["state"] for one in page(made)["models"]] == ["measured", "left out", "measured"]
    (sentence,) = made["lacks"]
    assert "θ_1: evaluate left out: its model" in sentence and "no longer in the store" in sentence
    assert sentence in Path(made["page"]).read_text() and "1 left out" in Path(made["page"]).read_text()
    assert evaluate(store, "latest")["models"]["cached"] == 3, "its own figures are there"
    weights = root(store) / "trees" / damaged["digest"] / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    made = evaluate(store, "latest", "--set", "evaluate.sampled=false")
    assert [one["state"] for one in page(made)["models"]] == ["measured", "left out", "left out"]


def test_one_that_fails_keeps_no_other_from_being_measured(evaluate, spinloop, store: Path) -> None:
    """Catches models that are not begun because another failed, and a failure that ends with the code of success."""
    made = evaluate(store, "latest", *WARM)
    of = {file: json.loads(file.read_text()) for file in root(store).glob("records/evaluate/*.json")}
    warm = {file: one for file, one in of.items() if one["payload"]["config"]["evaluate"].get("temperatures")}
    assert len(warm) == 3
    for file, one in warm.items():
        file.unlink()
        if one["facts"]["label"] == "θ_1":  # what a stage would write to lies elsewhere: it refuses
            os.symlink(store, root(store) / f"scratch/evaluate-{one['key']}")
    code, out, err = spinloop("evaluate", "latest", "--store", store, "--json", *WARM)
    assert code == 1 and "1 of the models could not be measured" in err and "θ_1: failed:" in err
    assert json.loads(out)["models"] == {"cached": 0, "measured": 2, "left_out": 0, "failed": 1}
    figures = [one["figures"] for one in page(made)["models"]]
    assert [bool(one) for one in figures] == [True, False, True]


def test_runs_side_by_side_share_their_models(evaluate, run, finished, store: Path) -> None:
    """Catches a model of two runs that is measured twice, a page that lacks a model or marks the best of another run,
    results that the next gc would remove, and hours that `spinloop costs` does not have."""
    name = (root(store) / "latest").readlink().name
    run(store, "iterations=1", "finetune.beta=0.25")
    other = (root(store) / "latest").readlink().name
    made = evaluate(store, name, other)
    assert (made["ran"], made["models"]["cached"]) == (0, 5), "as each has it, all is there"
    made = evaluate(store, name, other, *WARM)
    assert (made["ran"], made["cached"]) == (4, 1), "θ_0 once"
    figures = page(made)
    assert [(one["run"], one["model"]) for one in figures["models"]] == [
        *((name, f"θ_{k}") for k in range(3)),
        *((other, f"θ_{k}") for k in range(2)),
    ]
    best = [(one["run"], one["model"]) for one in figures["models"] if one["best"]]
    assert best == [(run, f"θ_{read_run(Store(store), run).best()}") for run in (name, other)]
    first, second = (figures["models"][i]["figures"]["nll/real"] for i in (0, 3))
    assert first == second and first["low"] < first["value"] < first["high"]
    text = Path(made["page"]).read_text()
    assert text.count("<svg") == len(figures["metrics"]) > 8 and "<h2>Style of the answers</h2>" in text
    for one in figures["models"]:
        folder = root(store) / "runs" / one["run"]
        links = {link.resolve() for link in folder.iterdir() if link.name.startswith(made["evaluation"][-6:])}
        assert len(links) == (3 if one["run"] == name else 2)
        assert all("repetition/t0.3" in json.loads((tree / "metrics.json").read_text()) for tree in links)
    kept = [json.loads(file.read_text()) for file in (root(store) / "runs" / name).glob("costs-*.json")]
    assert [one["costs"]["total"]["steps"] for one in kept if one.get("evaluation")] == [3, 3]
    again = evaluate(store, name, other, *WARM, "--best")
    assert (again["ran"], again["models"]["cached"]) == (0, 2)


@pytest.mark.parametrize("states", [("ran", "Cached"), ("Cached", "ran"), ("ran", "ran")])
def test_step_of_two_runs_ran_once(states: tuple[str, str]) -> None:
    """Catches a step that nobody ran, so that its hours are in no costs: the second run computed it and the first
    waited for it (seen once, under load); and one that a work pool computed for both and that counts twice."""
    entries = [Entry("evaluate", f"θ_0 of {i}", "k", state) for i, state in enumerate(states)]
    _count_once([*entries, Entry("evaluate", "θ_1", "another", "ran"), Entry("evaluate", "θ_2", "before", "Cached")])
    assert sorted(one.state for one in entries) == ["Cached", "ran"]


def test_benchmark_of_all_models_and_its_own_folder_of_tasks(evaluate, run, spinloop, store: Path, tmp_path) -> None:
    """Catches a harness whose keys are not the ordinary run's, evaluations that run again for it, a folder of tasks
    that is looked for under the name that a report has for it, and tasks that are computed without their folder."""
    tasks = tmp_path / "tasks"
    (tasks / "data").mkdir(parents=True)
    (tasks / "choice.yaml").write_text(yaml.safe_dump(CHOICE))
    lines = [{"q": f"{i}+1=", "choices": [str(i), str(i + 1)], "gold": 1} for i in range(6)]
    (tasks / "data" / "choice.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = ("harness.tasks=[sums_choice]", f"harness.include_path={tasks}")
    given = [part for one in settings for part in ("--set", one)]
    name = (root(store) / "latest").readlink().name
    made = evaluate(store, name, *given, "--models", "θ_0,2")
    assert (made["ran"], made["cached"]) == (2, 2)
    of = page(made)["models"][1]["figures"]["harness/sums_choice"]
    assert of["rows"] == 6 and of["low"] < of["value"] < of["high"]
    ordinary = run(store, *settings)
    states = {step["label"]: step["state"] for step in ordinary if step["stage"] == "harness"}
    assert states == {"θ_0": "Cached", "θ_1": "ran", "θ_2": "Cached"}
    own = (root(store) / "latest").readlink().name
    listed = evaluate(store, own, "--plan")
    assert {one["state"] for one in listed} == {"cached"} and len(listed) == 6
    listed = evaluate(store, own, "--plan", "--set", "harness.limit=3", "--best")
    assert [one["state"] for one in listed] == ["cached", "left out"] and "harness.include_path" in listed[1]["why"]
    code, _, err = spinloop("evaluate", own, "--store", store, "--set", "harness.include_path=/nonexistent")
    assert code == 2 and "/nonexistent: there is no such file or folder" in err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["latest", "--set", "finetune.beta=1"], "only evaluate, harness and runtime can be set here"),
        (["latest", "--set", "evaluation.sampled=1"], "only evaluate, harness and runtime can be set here"),
        (["latest", "--set", "evaluate"], "write it as field.path=value"),
        (["latest", "--set", "evaluate.samples=1"], "evaluate.samples: unknown field; did you mean sampled?"),
        (["latest", "--set", "evaluate.max_new_tokens=0"], "evaluate.max_new_tokens"),
        (["latest", "--set", "harness.tasks=[]"], "name at least one task"),
        (["latest", "--set", "runtime.trackers=[wandb]"], "these are for runs that train"),
        (["latest", "--set", "runtime.pools.evaluate=[1]"], "runtime.pools.evaluate"),
        (["nobody"], "no report of such a run"),
        (["../runs"], "no report of such a run"),
        (["latest", "latest"], "is named twice"),
        (["latest", "--models", "θ_1,θ_7"], "there is no model θ_7; it measured θ_0, θ_1, θ_2"),
        (["latest", "--models", "SFT"], "there is no model SFT"),
        (["latest", "--models", "θ_1", "--best"], "--best and --models"),
        (["latest", "--source", "/nonexistent"], "/nonexistent"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(spinloop, finished, given: list[str], says: str) -> None:
    """Catches a traceback, a setting that is ignored, and a step that runs before the command line was looked at."""
    before = sorted(root(finished[0]).rglob("*"))
    code, _, err = spinloop("evaluate", "--store", finished[0], "--plan", *given)
    assert code == 2 and says in err and err.count("\n") == 1 and "Traceback" not in err
    assert sorted(root(finished[0]).rglob("*")) == before


def test_run_without_models_and_store_without_runs_are_one_sentence(spinloop, server, store: Path, tmp_path) -> None:
    """Catches a page without a line, or a traceback, for a run whose ledger has no measured model."""
    file = root(store) / "latest" / "steps.json"
    steps = [step for step in json.loads(file.read_text()) if step["stage"] != "evaluate"]
    file.write_text(json.dumps(steps))
    code, _, err = spinloop("evaluate", "latest", "--store", store, "--plan")
    assert code == 2 and "this run measured no model; run its profile again" in err
    file.write_text(json.dumps([*steps, {**steps[0], "stage": "evaluate", "label": "θ_0", "key": "0" * 64}]))
    code, _, err = spinloop("evaluate", "latest", "--store", store)
    assert code == 2 and "the record of the run's own step is no longer in the store" in err
    kept = Store(store)
    tree = kept.new_tree()
    (tree / "metrics.json").write_text("{}")
    before = kept.publish(payload("evaluate", 1, {}, {"model": "a" * 64, "rows": "b" * 64}), tree, {})
    file.write_text(json.dumps([*steps, {**steps[0], "stage": "evaluate", "label": "θ_0", "key": before.key}]))
    code, _, err = spinloop("evaluate", "latest", "--store", store)
    assert code == 2 and "an older version of spinloop measured it" in err
    (root(store) / "latest" / "report.md").unlink()
    code, _, err = spinloop("evaluate", (root(store) / "latest").readlink().name, "--store", store, "--plan")
    assert code == 2 and "has not come to a report" in err
    (Store(tmp_path / "empty").root / "runs").rmdir()  # as a copy that has no empty folders
    code, _, err = spinloop("evaluate", "latest", "--store", tmp_path / "empty")
    assert code == 2 and "no report of such a run" in err and "runs there: none" in err
    assert not list((tmp_path / "empty").rglob("*.html"))
