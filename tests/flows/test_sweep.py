"""Sweeps: which runs they are, what these share, and the report of them all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.plan import check
from flows.sweep import run_all, trainings
from spin_core.config.profile import load_profile
from spin_core.errors import BadInput, StageFailed, Stopped
from tasks.runner.run import run_name
from tests.flows.fixtures import TINY

TWO = {"finetune.beta": [1.0, 0.5]}


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """The tiny profile, with a sweep of its own."""
    path = tmp_path / "swept.yaml"
    path.write_text(yaml.safe_dump({**TINY, "sweep": {"over": {"finetune.beta": [0.5, 1.0]}, "seeds": 2}}))
    return path


def test_runs_are_the_combinations_and_share_what_a_plain_run_is(tiny: Path) -> None:
    """Catches a combination that is missing or there twice, a seed that changes rows or answers, and a variant that is
    another run than the profile with the same settings."""
    made = trainings(str(tiny), ["iterations=1"], {**TWO, "finetune.lr": [1e-4, 2e-4]}, 3)
    assert [(one.variant, one.seed) for one in made.all] == [(v, s) for v in range(4) for s in (3, 4, 5)]
    assert [one.label for one in made.all[::3]] == ["beta 1, lr 0.0001", "beta 1, lr 0.0002", *FURTHER]
    assert {one.config.seed for one in made.all} == {3} and made.all[1].config.finetune.seed == 4
    plain, _ = load_profile(str(tiny), ["iterations=1", "finetune.beta=0.5"])
    names = [run_name(one.config) for one in made.all]
    assert run_name(plain) == names[6] and len(set(names)) == 12
    again = trainings(str(tiny), ["iterations=1"], {**TWO, "finetune.lr": [1e-4, 2e-4]}, 3)
    assert again.name == made.name != trainings(str(tiny), ["iterations=1"], TWO, 3).name


FURTHER = ("beta 0.5, lr 0.0001", "beta 0.5, lr 0.0002")


def test_runs_that_a_person_asked_for_are_never_held_back(tiny: Path) -> None:
    """Catches a sweep, or a run of one iteration, that ends because few rows are new, and a run's name that hangs on
    it."""
    settings = ["iterations=2", "runtime.min_new_rows=9"]
    made, plain = trainings(str(tiny), settings, TWO, 2), load_profile(str(tiny), settings)[0]
    assert plain.runtime.min_new_rows == 9 and {one.config.runtime.min_new_rows for one in made.all} == {0}
    assert plain.first(1).runtime.min_new_rows == 0
    assert run_name(plain) == run_name(load_profile(str(tiny), ["iterations=2"])[0])


def test_sweep_of_a_profile_is_read_and_its_axes_can_be_replaced(profile: Path) -> None:
    """Catches a section that is ignored, and an axis of the command line that is run beside the profile's own."""
    own = trainings(str(profile))
    assert [(one.label, one.seed) for one in own.all] == [
        ("beta 0.5", 3),
        ("beta 0.5", 4),
        ("beta 1", 3),
        ("beta 1", 4),
    ]
    assert [one.label for one in trainings(str(profile), (), {"finetune.beta": [2.0]}, 1).all] == ["beta 2"]
    assert all(one.config.sweep is None for one in own.all)


def test_profile_of_several_runs_is_not_run_as_one(profile: Path, tmp_path: Path) -> None:
    """Catches a `run` that silently takes the profile without its variants."""
    config, base = load_profile(str(profile))
    with pytest.raises(BadInput, match="`spinloop sweep` runs them"):
        check(config, str(tmp_path / "store"), base)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"finetune.betta": [1]}, r"finetune\.betta"),
        ({"finetune.beta": []}, "finetune.beta has no values"),
        ({"finetune.beta": [-1]}, r"with finetune\.beta=-1: finetune\.beta"),
        ({"finetune.beta": [1, 1]}, "has 1 twice"),
        ({"runtime.workers": [1, 2]}, "changes no result"),
        ({"name": ["a", "b"]}, "changes no result"),
        ({"seed": [1, 2]}, r"which rows are held out.*--seeds"),
        (
            {"finetune.beta": [*range(1, 101)], "finetune.lr": [*range(1, 101)]},
            r"10,000 runs \(100 of .* more than 200",
        ),
        ({}, "nothing to sweep over"),
        ({"model.path.deeper": [1]}, "model.path is not a section"),
    ],
)
def test_sweep_that_cannot_be_is_one_sentence(over: dict[str, list[Any]], says: str, tiny: Path) -> None:
    """Catches a traceback, ten thousand runs that begin, and variants that share no row or are the same run."""
    with pytest.raises(BadInput, match=says) as refused:
        trainings(str(tiny), (), over)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "over", "seeds", "says"),
    [
        (["runtime.approve=true"], TWO, 0, "wait for nobody"),
        ([], {"finetune.seed": [1, 2]}, 2, "--seeds varies it too"),
    ],
)
def test_settings_that_a_sweep_cannot_keep_are_refused(settings, over, seeds, says, tiny: Path) -> None:
    """Catches an axis that the seeds overwrite in silence, and runs that wait for a person one by one."""
    with pytest.raises(BadInput, match=says):
        trainings(str(tiny), settings, over, seeds)


def test_seeds_begin_at_the_trainings_own(tiny: Path) -> None:
    """Catches a first training that is called by another seed than it has, and two that are the same run."""
    made = trainings(str(tiny), ["finetune.seed=4"], TWO, 2)
    assert [(one.seed, one.config.finetune.seed) for one in made.all] == [(4, 4), (5, 5)] * 2
    assert [one.label for one in made.variants] == ["beta 1", "beta 0.5"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--over", "finetune.beta"], "write it as field.path=value,value"),
        (["--over", "finetune.beta="], "write it as field.path=value,value"),
        (["--over", "finetune.beta=1", "--over", "finetune.beta=2"], "is given twice"),
        (["--over", "finetune.beta=1,2", "--at-once", "3"], "name pools for them"),
        (["--over", "finetune.beta=1,2", "--gpu", "l40s"], "are for --plan"),
    ],
)
def test_wrong_options_are_one_sentence(spinloop, tiny: Path, tmp_path: Path, given: list[str], says: str) -> None:
    """Catches an option that is ignored, or a traceback."""
    code, _, err = spinloop("sweep", tiny, "--store", tmp_path / "store", *given)
    assert code == 2 and says in err and not (tmp_path / "store").exists()


def test_a_failed_run_does_not_end_the_others(tiny: Path) -> None:
    """Catches a sweep that stops at its first failure, and one that says nothing of it."""
    made, said = trainings(str(tiny), (), TWO), []

    def run(one) -> dict:
        if one.config.finetune.beta == 1.0:
            raise StageFailed("out of memory")
        return {"run": run_name(one.config)}

    for at_once in (1, 2):
        results = run_all(made, run, said.append, at_once)
        assert isinstance(results[0], StageFailed) and isinstance(results[1], dict)
    assert any("beta 1, seed 3 failed: out of memory" in line for line in said)


def test_sigterm_ends_the_sweep(tiny: Path) -> None:
    """Catches a sweep that begins its next run when it was asked to end."""
    made, begun = trainings(str(tiny), (), TWO), []

    def run(one) -> dict:
        begun.append(one)
        raise Stopped("ended by SIGTERM")

    with pytest.raises(Stopped):
        run_all(made, run, lambda text: None)
    assert len(begun) == 1


def test_sweep_runs_only_what_differs_and_its_plan_says_so(spinloop, server, finished, tiny, tmp_path) -> None:
    """Catches a step that two variants share and that runs twice (a generate or score of the first iteration), a plan
    that counts otherwise than the sweep then runs, a cached sweep that runs anything, and a report without figures."""
    store = tmp_path / "store"
    shutil.copytree(finished[0], store, symlinks=True)
    given = [tiny, "--store", store, "--set", "iterations=1", "--over", "finetune.beta=1,0.25", "--seeds", 2, "--json"]
    code, out, err = spinloop("sweep", *given, "--plan")
    assert code == 0, err
    plan = json.loads(out)
    assert [one["run"] for one in plan] == [
        "beta 1, seed 3",
        "beta 1, seed 4",
        "beta 0.25, seed 3",
        "beta 0.25, seed 4",
    ]
    assert plan[0]["adds"] == 1 and plan[0]["cached"] > 5, "of one iteration the report is another"
    assert [one["adds"] for one in plan[1:]] == [4, 4, 4], "finetune, evaluate, gate and report"
    code, out, err = spinloop("sweep", *given)
    assert code == 0, err
    made = json.loads(out)
    assert made["ran"] == sum(one["adds"] for one in plan)
    assert "run 4 of 4: beta 0.25, seed 4" in err and "ran     generate" not in err and "ran     score" not in err
    figures = json.loads(Path(made["page"]).with_suffix(".json").read_text())
    assert [one["label"] for one in figures["variants"]] == ["beta 1", "beta 0.25"]
    assert all(len(one["figures"]["nll/real"]["each"]) == 2 for one in figures["variants"])
    each = [value for one in figures["variants"] for value in one["figures"]["nll/real"]["each"]]
    assert len(set(each)) == 4, "every training is another"
    assert "beta 0.25" in Path(made["page"]).read_text()
    code, out, err = spinloop("sweep", *given)
    assert code == 0 and json.loads(out)["ran"] == 0
    code, out, err = spinloop("sweep", *given[:-1], "--plan")
    assert code == 0 and "4 runs: 0 steps would run" in out, err
