"""Profiles: overrides, settings, and what the paper's profile says."""

from __future__ import annotations

import pytest

from spin_core.config.profile import load_profile, parse
from spin_core.errors import BadInput

LEAST = {"model": {"path": "m"}, "dataset": {"path": "d"}}


def test_zephyr_profile_has_the_papers_schedule():
    """Catches an override that is not applied: iterations 2 and 3 of the paper have other settings than 0 and 1."""
    config, _ = load_profile("zephyr-7b")
    at = [config.at(t).finetune for t in range(config.iterations)]
    assert [part.lr for part in at] == [5e-7, 5e-7, 1e-7, 1e-7]
    assert [part.beta for part in at] == [0.1, 0.1, 0.1, 5.0]
    assert {(part.schedule_epochs, part.stop_epoch, part.optimizer) for part in at} == {(6.0, 2.0, "rmsprop")}
    assert config.epochs(3) == 2
    assert len(config.model.revision) == len(config.dataset.revision) == 40


def test_override_of_one_iteration_leaves_the_others():
    """Catches an override that leaks into the profile."""
    config = parse({**LEAST, "iterations": 3, "overrides": {1: {"finetune": {"beta": 2}}}}, "p")
    assert [config.at(t).finetune.beta for t in range(3)] == [0.1, 2.0, 0.1]


def test_setting_reads_exponents_as_numbers_and_empty_as_default(tmp_path):
    """Catches YAML 1.1, to which 5e-7 is a string, and a setting that cannot be taken back."""
    path = tmp_path / "p.yaml"
    path.write_text("model: {path: m}\ndataset: {path: d}\nsft: {lr: 1}\nfinetune: {beta: 3}\n")
    config, base = load_profile(str(path), ["finetune.lr=5e-7", "sft=", "finetune.beta=", "runtime.workers=3"])
    assert config.finetune.lr == 5e-7
    assert config.sft is None
    assert config.finetune.beta == 0.1
    assert config.runtime.workers == 3
    assert base == tmp_path


@pytest.mark.parametrize("value", ["-1", "1.5", "true", "many", "1e12"])
def test_threshold_of_new_rows_is_a_number_of_rows(tmp_path, value):
    """Catches a threshold that nothing reaches, or that is taken for another number, in silence."""
    path = tmp_path / "p.yaml"
    path.write_text("model: {path: m}\ndataset: {path: d}\n")
    with pytest.raises(BadInput, match=r"p.yaml: runtime.min_new_rows: .*\."):
        load_profile(str(path), [f"runtime.min_new_rows={value}"])
    assert load_profile(str(path), ["runtime.min_new_rows=100"])[0].runtime.min_new_rows == 100


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("dataset.sets.2.weight=1", r"dataset.sets is a list of 2, counted from 0"),
        ("dataset.sets.name=x", r"dataset.sets is a list of 2"),
        ("dataset.sets.1.wieght=1", r"dataset.sets.1.wieght: unknown field; did you mean weight\?"),
        ("dataset.sets.1.path=", r"sets.1 has no name; give it a path"),
        ("dataset.sets.1={name: b}", r"dataset.sets.1.path: is required"),
        ("dataset.sets.1.name=a", r"dataset: `sets` has the name a twice"),
    ],
)
def test_setting_of_one_set_names_its_place(tmp_path, setting, message):
    """Catches: a traceback for a set that is not there, and a misspelt field of a set without the near name."""
    path = tmp_path / "p.yaml"
    path.write_text("model: {path: m}\ndataset: {sets: [{path: a}, {path: b}]}\n")
    with pytest.raises(BadInput, match=message):
        load_profile(str(path), [setting])
    assert load_profile(str(path), ["dataset.sets.1.turns=all"])[0].dataset.sets[1].turns == "all"
    assert (
        load_profile(str(path), ["dataset.sets.1.turns=all", "dataset.sets.1.turns="])[0] == load_profile(str(path))[0]
    )


def test_prompt_limit_must_leave_room_in_an_override_too():
    """Catches a check of the profile that does not look at the iterations."""
    with pytest.raises(BadInput, match=r"below finetune.max_length \(512\) \(iteration 1\)"):
        parse({**LEAST, "overrides": {1: {"finetune": {"max_length": 512}}}}, "p")
