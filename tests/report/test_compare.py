"""Two runs side by side: differences are over the same rows, paired, and the sentence says what they show."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from spin_core.analysis.costs import costs
from spin_core.analysis.profile_diff import preset
from spin_core.analysis.results import ModelResults
from spin_core.analysis.run_comparison import Comparison, HarnessItems, Side, compare, harness_items
from spin_core.errors import BadInput
from spin_core.report.compare_page import page, text
from tests.report.columns import without_tooltip
from tests.report.test_page import HOSTILE, Tags, fetched, steps


def model(label: str, values: dict[str, float], **more) -> ModelResults:
    """A model that is right where a row's value is 1."""
    answers = {key: {"id": key, "greedy_match": bool(value), **more} for key, value in values.items()}
    return ModelResults(label, "iteration", 0, answers=answers)


def side(name: str, *models: ModelResults, best: str = "", items: dict | None = None, **settings: object) -> Side:
    made = costs(steps(), lambda entry: {"device": {"gpus": 1, "name": "H100"}})
    return Side(name, preset() | settings, list(models), best or models[-1].label, made, items or {})


def rows(right: int, count: int = 100, first: int = 0) -> dict[str, float]:
    return {f"{i:04x}": float(i - first < right) for i in range(first, first + count)}


def test_difference_is_paired_over_the_shared_rows() -> None:
    """Catches means over all rows of each run, the sign turned, and an interval of two samples that are not paired
    (0.64 against 0.70 of 100 is chance there, and six gained of none lost is not)."""
    old, new = model("θ_1", rows(64)), model("θ_1", rows(70) | {"ffff": 1.0})
    made = compare(side("a", old), side("b", new))
    (change,) = made.pairs[0].changes
    assert (change.here, change.there, change.rows) == (0.64, 0.70, 100)
    assert change.value == pytest.approx(0.06) and 0 < change.low < 0.06 < change.high < 0.13
    assert change.better == 1 and made.verdict.startswith(
        "θ_1 of b is clearly better than θ_1 of a: exact match (greedy)"
    )
    back = compare(side("b", new), side("a", old)).pairs[0].changes[0]
    assert back.better == -1 and (back.low, back.high) == pytest.approx((-change.high, -change.low), abs=0.01)


def test_equal_runs_are_not_better() -> None:
    """Catches "better" for chance: of 100 comparisons of equal made-up models at most a handful may say so."""
    draw, clear = random.Random(3), 0
    for _ in range(100):
        old, new = ({f"{i:04x}": float(draw.random() < 0.5) for i in range(60)} for _ in range(2))
        made = compare(side("a", model("θ_1", old)), side("b", model("θ_1", new)))
        clear += "is not clearly better or worse" not in made.verdict
    assert clear <= 8


def test_nll_counts_tokens_and_falls_are_better() -> None:
    """Catches a lower NLL called worse, and rows of one token that weigh as much as rows of a hundred."""
    old, new = (
        ModelResults(
            "θ_1", "iteration", 0, answers={str(i): {"nll": nll[i % 2], "tokens": 1 + 98 * (i % 2)} for i in range(80)}
        )
        for nll in ((1.0, 2.0), (2.0, 1.9))
    )
    (change,) = compare(side("a", old), side("b", new)).pairs[0].changes
    assert change.here == pytest.approx(0.01 * 1 + 0.99 * 2) and change.value == pytest.approx(0.01 - 0.99 * 0.1)
    assert change.better == 1


def harness_artifact(root: Path, lines: dict[str, dict], right: dict[str, list[float]]) -> HarnessItems:
    """The items of a harness artifact with these entries of results.json and these values of each leaf's items."""
    root.mkdir()
    (root / "results.json").write_text(json.dumps({"tasks": lines}))
    items = [
        {"id": f"{name}/{i}", "task": name, "value": value}
        for name, values in right.items()
        for i, value in enumerate(values)
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return harness_items(root)


def line(**more: object) -> dict:
    return {"metric": "acc,none", "version": 1.0, "prompts_sha256": "ab", "higher_is_better": True, **more}


def of_harness(old: HarnessItems, new: HarnessItems) -> Comparison:
    models = [ModelResults("θ_1", "iteration", 0, answers={"1": {}}) for _ in range(2)]
    return compare(side("a", models[0], items={"θ_1": old}), side("b", models[1], items={"θ_1": new}))


def test_harness_averages_tasks_over_the_items_that_both_answered(tmp_path) -> None:
    """Catches a mean over items, in which a task of many items counts more, and items of a task that one run had."""
    tasks = {"few": line(), "many": line()}
    old = harness_artifact(tmp_path / "a", tasks, {"few": [1.0, 0.0] * 10, "many": [1.0, 0.0] * 200})
    new = harness_artifact(
        tmp_path / "b", tasks | {"other": line()}, {"few": [1.0] * 20, "many": [1.0, 0.0] * 200, "other": [1.0]}
    )
    (change,) = of_harness(old, new).pairs[0].changes
    assert (change.here, change.there, change.rows) == (pytest.approx(0.5), pytest.approx(0.75), 420)
    for damaged in ("{}", '{"id": "nobody/0", "task": "nobody", "value": 1}'):
        (tmp_path / "b" / "rows.jsonl").write_text(damaged + "\n")
        with pytest.raises(BadInput, match=r"not what harness wrote|name a task nobody"):
            harness_items(tmp_path / "b")
    assert harness_items(None) == HarnessItems()


@pytest.mark.parametrize(
    ("mean", "there"), [("items", (3 / 8 + 1 / 2) / 2), ("subtasks", ((1 + 1 / 6) / 2 + 1 / 2) / 2)]
)
def test_harness_group_counts_as_one_task_by_its_own_mean(tmp_path, mean, there) -> None:
    """Catches a group that is refused because its items are its subtasks', one whose subtasks each count as a task, and
    one whose mean is not the group's own."""
    tasks = {"mmlu": line(mean=mean, subtasks={"law": line(), "art": line()}), "arc": line()}
    items = {"law": [0.0, 0.0], "art": [0.0] * 6, "arc": [1.0, 0.0]}
    old = harness_artifact(tmp_path / "a", tasks, items)
    new = harness_artifact(tmp_path / "b", tasks, items | {"law": [1.0, 1.0], "art": [1.0] + [0.0] * 5})
    (change,) = of_harness(old, new).pairs[0].changes
    assert (change.here, change.there, change.rows) == (pytest.approx(0.25), pytest.approx(there), 10)


@pytest.mark.parametrize(
    ("field", "label"), [("prompts_sha256", "prompts"), ("metric", "metric"), ("version", "task version")]
)
def test_harness_tasks_with_other_settings_are_not_paired(tmp_path, field, label) -> None:
    """Catches items of other questions, or marked otherwise, paired by their number, a group left out for one of
    its subtasks, and a page and a text that do not say what was left out."""
    tasks, other = (
        {"mmlu": line(mean="items", subtasks={"law": line(**part), "art": line()})} for part in ({}, {field: "x"})
    )
    old = harness_artifact(tmp_path / "a", tasks, {"law": [0.0] * 5, "art": [0.0, 1.0]})
    new = harness_artifact(tmp_path / "b", other, {"law": [1.0] * 5, "art": [0.0, 1.0]})
    made = of_harness(old, new)
    (change,) = made.pairs[0].changes
    assert (change.here, change.there, change.rows) == (0.5, 0.5, 2)
    assert made.note == f"The harness average leaves out 1 task that the two runs did not ask alike: law ({label})."
    assert page(made).count(made.note) == text(made).replace("\\", "").count(made.note) == 1
    assert of_harness(old, old).note == ""
    with pytest.raises(BadInput, match=r"leaves out 2 tasks"):
        of_harness(old, HarnessItems({"law": line(**{field: "x"}), "art": line(**{field: "x"})}, new.values))


def test_runs_without_shared_rows_are_refused() -> None:
    """Catches a comparison of nothing, with empty tables and a sentence about them."""
    with pytest.raises(BadInput, match=r"a and b: their models share no held-out rows \(100 and 50, none"):
        compare(side("a", model("θ_1", rows(5))), side("b", model("θ_1", rows(5, 50, first=1000))))


def test_best_models_come_first_then_those_of_the_same_place() -> None:
    """Catches last models compared first where the gate says that others are best, last ones that are left out, and a
    model of one run only."""
    values = rows(50)
    here = side("a", *(model(f"θ_{i}", values) for i in range(3)), best="θ_1")
    there = side("b", *(model(f"θ_{i}", values) for i in range(2)), best="θ_0")
    assert [(pair.here, pair.there) for pair in compare(here, there).pairs] == [
        ("θ_1", "θ_0"), ("θ_2", "θ_1"), ("θ_0", "θ_0"), ("θ_1", "θ_1"),
    ]  # fmt: skip


def test_sentence_names_the_first_setting_and_another_metrics_word() -> None:
    """Catches a verdict that hides that a second metric shows the opposite, and settings that it leaves out."""
    old = model("θ_1", rows(50), greedy_repetition=0.0)
    new = model("θ_1", rows(70), greedy_repetition=0.5)
    made = compare(side("a", old), side("b", new, seed=7, iterations=2))
    assert "clearly better than" in made.verdict and "; by repetition it is clearly worse" in made.verdict
    assert made.verdict.endswith("; seed was 42 and is 7, the first of 2 settings that differ.")
    assert compare(side("a", old), side("b", new)).verdict.endswith("; no setting differs.")
    same = compare(side("a", old), side("b", old)).verdict
    assert same == (
        "The best models of both, θ_1 and θ_1, do the same on all of the 100 rows that both were asked; no setting "
        "differs."
    )


def test_sentence_of_equal_best_models_goes_on_to_the_last() -> None:
    """Catches a verdict that stops at θ_0, which both runs share, where what came of it differs."""
    start = model("θ_0", rows(80))
    here, there = (side(name, start, model("θ_1", rows(n)), best="θ_0") for name, n in (("a", 40), ("b", 60)))
    assert "do the same on all of the 100 rows that both were asked; θ_1 of b is clearly better than θ_1 of a: " in (
        compare(here, there).verdict
    )


def test_page_and_text_say_the_same_and_fetch_nothing() -> None:
    """Catches a page that loads something, costs of the wrong run, and a terminal text without the tables."""
    made = compare(side("a", model("θ_1", rows(50))), side("b", model("θ_1", rows(70)), seed=7))
    html, shown_text = page(made), text(made)
    assert fetched(html) == [] and "script" not in re.sub("script-src|<style.*?</style>", "", html)
    shown = " ".join(Tags(html).text.split())
    assert "EM greedy ▲ +0.200" in shown and "seed 42 7" in shown
    for title in ("Best models: θ_1", "Settings that differ", "Costs"):
        assert f"{title}:\n\n|" in shown_text and title in shown
    assert "GPU hours 1.35 1.34 of it cached" in shown and "| GPU hours " in shown_text
    assert "of it cached" in shown_text and "from the store" not in shown_text


def test_hostile_names_and_settings_are_text() -> None:
    """Catches a run's name, a label or a setting that is markup."""
    old, new = model(HOSTILE, rows(50)), model(HOSTILE, rows(70))
    settings = {"dataset": preset()["dataset"] | {"columns": {HOSTILE: HOSTILE}}, HOSTILE: HOSTILE}
    made = compare(side(HOSTILE, old), side(HOSTILE, new, **settings))
    assert fetched(page(made)) == [] == without_tooltip(page(made))
    assert "<script" not in text(made) and "<img" not in text(made)
