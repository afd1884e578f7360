"""What runs cost over time: sums by profile, stage and week of what executions kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from spin_core.analysis import account
from spin_core.analysis.costs import costs
from spin_core.errors import BadInput
from spin_core.job import Entry, Place
from spin_core.report import costs_page
from tests.report.columns import without_tooltip

START = datetime(2026, 11, 4, 3, tzinfo=UTC)  # a Wednesday
GPU = {"device": {"gpus": 2, "shared": 1, "name": "H100"}}


def step(stage: str, seconds: float, state: str = "ran", **summary: Any) -> Entry:
    return Entry(stage, "", "k", state, seconds, summary=summary, place=Place("iteration", 0))


def kept(runs: Path, run: str, time: datetime, *steps: Entry, unique: str = "00000a") -> None:
    """The file of an execution, as a run writes it."""
    (runs / run).mkdir(parents=True, exist_ok=True)
    made = costs(steps, lambda one: GPU)
    (runs / run / account.name_of(time, unique)).write_bytes(account.file_of(account_profile(run), made))


def account_profile(run: str) -> str:
    return run.split("-")[0]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two profiles over four weeks: the second execution of a run has everything cached."""
    kept(tmp_path, "demo-aaaaaa", START, step("generate", 1800, tokens=100), step("finetune", 3600))
    kept(tmp_path, "demo-aaaaaa", START + timedelta(weeks=3), step("generate", 1800, "Cached", tokens=100),
         step("finetune", 3600, "Cached"))  # fmt: skip
    kept(tmp_path, "other-bbbbbb", START + timedelta(days=5), step("finetune", 7200), unique="00000b")
    return tmp_path


def test_sums_are_by_profile_stage_and_week(runs: Path) -> None:
    """Catches a computation that counts again when it is cached, a week of another Monday, a week without a run that is
    left out (the picture would be too short), and GPU hours that forget that two GPUs were at work."""
    made = account.account(account.read(runs, lambda file: None))
    assert made.total.used["gpu_hours"] == pytest.approx(1 + 2 + 4) and made.total.saved["gpu_hours"] == pytest.approx(
        3
    )
    assert (made.total.executions, made.total.ran, made.total.cached) == (3, 3, 2)
    assert {name: one.used["gpu_hours"] for name, one in made.profiles.items()} == pytest.approx(
        {"demo": 3, "other": 4}
    )
    assert list(made.stages) == ["generate", "finetune"] and made.stages["generate"].saved["generated"] == 100
    assert list(made.weeks) == ["2026-11-02", "2026-11-09", "2026-11-16", "2026-11-23"]
    assert [one.used["gpu_hours"] for one in made.weeks.values()] == pytest.approx([3, 4, 0, 0])
    assert made.weeks["2026-11-23"].saved["gpu_hours"] == pytest.approx(3)
    assert "computed 7.00 GPU hours; the cache saved 3.00 (30.0 %" in costs_page.sentence(made, {"": 1})


def test_two_executions_of_one_second_are_both_there(tmp_path: Path) -> None:
    """Catches an execution that overwrites another's file."""
    for unique in ("00000a", "00000b"):
        kept(tmp_path, "demo-aaaaaa", START, step("finetune", 10), unique=unique)
    assert len(account.read(tmp_path, lambda file: None)) == 2


def test_run_from_before_is_counted_once_and_said(runs: Path) -> None:
    """Catches old runs that are left out in silence, and one that is counted beside its own executions."""
    old = runs / "old-cccccc"
    old.mkdir()
    for folder in (old, runs / "demo-aaaaaa"):
        (folder / "steps.json").write_text("[]")
    made = account.account(account.read(runs, lambda file: ("old", costs([step("sft", 3600)], lambda one: GPU))))
    assert made.unknown == ["old-cccccc"] and made.profiles["old"].used["gpu_hours"] == pytest.approx(2)
    assert made.total.executions == 4
    assert "Of 1 run from before executions were kept" in costs_page.text(made, {})


def test_damaged_file_is_one_sentence(runs: Path) -> None:
    """Catches a sum that leaves a damaged file out in silence."""
    (file,) = (runs / "other-bbbbbb").glob("costs-*.json")
    file.write_text("{")
    with pytest.raises(BadInput, match="not the costs of an execution; remove it") as refused:
        account.read(runs, lambda file: None)
    assert str(file) in str(refused.value)


def test_store_without_runs_has_no_executions(tmp_path: Path) -> None:
    """Catches a traceback in a new store."""
    assert account.read(tmp_path / "runs", lambda file: None) == []


def test_since_is_a_date(runs: Path) -> None:
    """Catches a day that is left out, and a traceback for what is no date."""
    every = account.read(runs, lambda file: None)
    assert len(account.since(every, "2026-11-09")) == 2 and len(account.since(every, "2026-11-04")) == 3
    with pytest.raises(BadInput, match="write it as a date"):
        account.since(every, "2026-11-09T03:00+05:00")


def test_page_and_text_have_every_line(runs: Path) -> None:
    """Catches a profile, stage or week that is not shown, and a disk column without a disk."""
    made = account.account(account.read(runs, lambda file: None))
    page = costs_page.page(made, "store", {"": 3_000_000, "demo": 2_000_000})
    text = costs_page.text(made, {})
    for word in ("demo", "other", "generate", "finetune", "2026-11-16"):
        assert word in page and word in text
    assert "2.00 MB" in page and "disk" not in text and page.count("<svg") == 1
    assert without_tooltip(page) == []
    assert json.loads(json.dumps(account.as_json(made)))["weeks"]["2026-11-09"]["executions"] == 1


def test_evaluation_of_an_old_run_is_counted_beside_it(runs: Path) -> None:
    """Catches a run from before executions were kept whose hours are gone once its models are measured again."""
    old = runs / "old-cccccc"
    old.mkdir()
    (old / "steps.json").write_text("[]")
    again = costs([step("evaluate", 1800)], lambda one: GPU)
    (old / account.name_of(START, "00000c")).write_bytes(account.file_of("old", again, evaluation=True))
    made = account.account(account.read(runs, lambda file: ("old", costs([step("sft", 3600)], lambda one: GPU))))
    assert made.profiles["old"].used["gpu_hours"] == pytest.approx(2 + 1) and made.unknown == ["old-cccccc"]
