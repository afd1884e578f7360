"""Models of several runs side by side: what each figure is, what does not go together, and the page."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from spin_core.analysis.evaluation import Evaluated, Measured, as_json, evaluated, heading, is_less_better, sentence
from spin_core.analysis.profile_diff import preset
from spin_core.analysis.results import ModelResults
from spin_core.report import evaluation_page
from tests.report.columns import without_tooltip
from tests.report.test_page import HOSTILE, Tags, fetched

DAY = datetime(2026, 11, 2, tzinfo=UTC)


def model(
    run: str,
    k: int,
    rows: range = range(4),
    kind: str = "iteration",
    tasks: dict[str, dict] | None = None,
    **given: Any,
) -> Measured:
    """θ_k of a run: right on even rows; row i has i tokens more than one, of i nats each."""
    answers = {
        f"r{i}": {"nll": float(i), "tokens": 1 + i, "greedy_match": i % 2 == 0, "greedy_tokens": 2 * i} for i in rows
    }
    total = sum(1 + i for i in rows)
    metrics = {
        "rows": len(rows), "nll/real": sum(i * (1 + i) for i in rows) / total, "exact_match/greedy": 0.5,
        "length/greedy_tokens": sum(2 * i for i in rows) / len(rows), "truncated/greedy": 0.25,
    }  # fmt: skip
    harness = {"tasks": tasks, "average": 0.5, "lm_eval": "0.4.13"} if tasks else {}
    results = ModelResults(f"θ_{k}", kind, k - 1, metrics, answers, harness=harness)
    state = given.pop("state", "measured")
    return Measured(run, results, DAY + timedelta(days=k), k == 1, state, **given)


def task(value: float, **other: Any) -> dict:
    given = {"metric": "acc,none", "value": value, "stderr": 0.1, "rows": 50, "prompts_sha256": "a", "version": 1.0}
    return given | {"higher_is_better": True} | other


def made(*models: Measured, **profiles: dict) -> Evaluated:
    return evaluated(models, profiles)


def test_figures_have_the_intervals_of_the_project() -> None:
    """Catches an NLL whose rows weigh alike (long answers count more), a rate without Wilson's interval, a task without
    its standard error, and a figure that a model does not have and that counts as zero."""
    of = made(model("a", 0), model("a", 1, tasks={"arc": task(0.4)})).figures
    assert of[0]["nll/real"]["value"] == pytest.approx((2 + 6 + 12) / 10), "tokens 1, 2, 3, 4"
    squares = sum(((1 + i) * (i - 2)) ** 2 for i in range(4))
    half = 1.959964 * (squares * 4 / 3) ** 0.5 / 10
    assert of[0]["nll/real"]["low"] == pytest.approx(2 - half) and of[0]["nll/real"]["rows"] == 4
    assert (of[0]["exact_match/greedy"]["low"], of[0]["exact_match/greedy"]["high"]) == pytest.approx(
        (0.150, 0.850), abs=0.001
    )
    assert of[1]["harness/arc"] == pytest.approx({"value": 0.4, "low": 0.204, "high": 0.596, "rows": 50}, abs=1e-4)
    assert "harness/arc" not in of[0] and "exact_match/sampled" not in of[0]


def test_metrics_are_in_reading_order_and_named() -> None:
    """Catches a style figure before exact match, a benchmark that is called a sum of them, and the head `EM, T = reedy`
    of an unknown kind."""
    both = made(model("a", 1, tasks={"arc": task(0.4), "bbq": task(0.2, higher_is_better=False)}), model("b", 1))
    names = ["harness/arc", "harness/bbq", "exact_match/greedy", "nll/real", "truncated/greedy", "length/greedy_tokens"]
    assert both.metrics == names, "an average over tasks of which less is better in one says nothing"
    heads = ["arc", "bbq", "EM, greedy", "NLL", "never ends, greedy", "tokens, greedy"]
    assert list(map(heading, names)) == heads
    assert heading("repetition/t0.3") == "repetition, T = 0.3" and heading("loops/deployed") == "loops, as deployed"
    assert [name for name in names if is_less_better(name, both)] == ["harness/bbq", "nll/real", "truncated/greedy"]


def test_what_does_not_go_together_is_said() -> None:
    """Catches runs on other rows, with other settings or benchmarks of another version that stand side by side as if
    their figures were of one kind; and a note where all is alike."""
    alike = made(model("a", 0), model("b", 0), a=preset(), b=preset() | {"name": "other", "iterations": 7})
    assert alike.notes == []
    rows = made(model("a", 0), model("b", 0, range(1, 6)), a=preset(), b=preset())
    (note,) = rows.notes
    assert note.startswith("Not all runs have the same held-out rows (4 to 5, of which 3 are in all 2): each figure is")
    other = preset()
    other["evaluate"] = other["evaluate"] | {"max_new_tokens": 7}
    other["seed"] += 1
    settings = made(model("a", 0), model("b", 0), a=preset(), b=other).notes
    assert settings == [
        "seed is another in 1 run than in a, so their figures do not go together.",
        "evaluate.max_new_tokens is another in 1 run than in a, so their figures do not go together; give `--set "
        "evaluate.max_new_tokens=…` for all.",
    ]
    other = preset() | {"overrides": {"1": {"evaluate": {"sampled": False}, "finetune": {"beta": 1.0}}}}
    (note,) = made(model("a", 0), a=other).notes
    assert note.startswith("θ_2 of 1 run keeps settings of its iteration (overrides.1.evaluate)")
    tasks = made(model("a", 1, tasks={"arc": task(0.4)}), model("b", 1, tasks={"arc": task(0.4, prompts_sha256="b")}))
    assert len(tasks.notes) == 1 and tasks.notes[0].startswith("arc: not all models were asked with the same prompts")


def test_every_model_is_counted_once() -> None:
    """Catches a model that is in no count, and an outcome for other programs that lacks one."""
    states = ("cached", "measured", "left out", "failed")
    all_ = made(*(model(f"run-{i}", 1, state=state, lacks=["why"]) for i, state in enumerate(states)))
    assert sentence(all_) == "4 models of 4 runs: 1 cached, 1 measured now, 1 left out, 1 failed."
    assert [one["state"] for one in as_json(all_, {})["models"]] == list(states)
    assert as_json(all_, {"ran": 3})["ran"] == 3 and as_json(all_, {})["models"][0]["made"].startswith("2026-11-03")


def test_picture_has_a_line_for_each_run_and_the_page_a_row_for_each_model() -> None:
    """Catches a run without its line, more runs than colours, of which two look alike, a control among the iterations,
    and a page of best models alone whose lines have one point each."""
    weekly = [model(f"week-{week}", k) for week in range(9) for k in range(3)]
    both = made(*weekly, model("week-8", 5, kind="control"))
    html = evaluation_page.page(both, "weekly", ["evaluate.sampled=false"])
    assert fetched(html) == [] == without_tooltip(html) and html.count("<svg") == len(both.metrics) == 4
    assert html.count("3 earlier runs in grey") == 4 and "week-8" in html and "θ_5" in html
    rows = [line for line in html.splitlines() if line.startswith("<tr class=") and "week-" in line]
    assert len(rows) == 28 * 2 and "2026-11-04" in rows[2], "a table of figures and one of style"
    assert "week-8, θ_5:" not in "".join(line for line in html.splitlines() if "aria-label" in line)
    best = made(*(model(f"week-{week}", 1) for week in range(9)))
    html = evaluation_page.page(best, "weekly", [])
    assert "k of θ_k" not in html and html.count("<svg") == 4 and "Evaluated as each run has it." in html
    text = evaluation_page.text(best, ["harness.tasks=[a|b]"])
    assert "`harness.tasks=[a|b]`" in text and text.count("\n| week-") == 18 and "week-3, θ_1 ★" in text


def test_hostile_names_are_text() -> None:
    """Catches the label of a control, a task's name or a reason that is markup on the page or in its Markdown."""
    one = model("a", 1, tasks={HOSTILE: task(0.4)}, lacks=[HOSTILE])
    both = made(Measured("a", one.results, None, False, "left out", [HOSTILE]))
    html, text = evaluation_page.page(both, HOSTILE, [HOSTILE]), evaluation_page.text(both, [HOSTILE])
    assert fetched(html) == [] and Tags(html).text.count("<script>alert(1)</script>") >= 4
    assert Tags(html).text.count("{{ 7*7 }}") >= 4 and "<script" not in html.split("</style>", 1)[1]
    assert "<img" not in re.sub("`[^`\n]*`", "", text, count=1), "settings are code, the rest is escaped"
