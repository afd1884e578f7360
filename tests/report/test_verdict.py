"""The sentence at the top is true of the figures, also where they are bad news."""

from __future__ import annotations

import re

import pytest

from spin_core.analysis.results import read_model
from spin_core.analysis.summary import model_row
from spin_core.analysis.verdict import verdict
from spin_core.report import ui_pages
from spin_core.stages import report
from tests.report.made_up import evaluate_tree, full_run, judged_run, render, repeating

ROSE = "Exact match rose from 0.580 to 0.660"


def sentence(inputs: dict, config: report.Config) -> str:
    models = []
    for row in config.rows:
        trees = [
            inputs[name][index] if (index := getattr(row, name)) >= 0 else None
            for name in ("evaluate", "finetune", "gather")
        ]
        models.append(read_model(row.label, row.kind, row.iteration, *trees))
    return verdict([model_row(model, models[0]) for model in models])


@pytest.mark.parametrize(
    ("rates", "controls", "text"),
    [
        (
            (580, 630, 660), (590, 600),
            ROSE + " over two iterations (greedy, 1,000 held-out prompts); "
            "the same number of SFT steps (240) reached 0.590.",
        ),
        (
            (580, 560, 540), (),
            "Exact match fell from 0.580 to 0.540 over two iterations (greedy, 1,000 held-out prompts).",
        ),
        (
            (580, 600, 540), (),
            "Exact match fell from 0.580 to 0.540 over two iterations (greedy, 1,000 held-out prompts); "
            "it was best after iteration 0 (θ_1), at 0.600.",
        ),
        ((580, 580), (), "Exact match stayed at 0.580 over one iteration (greedy, 1,000 held-out prompts)."),
        (
            (580, 660), (590, 700),
            ROSE + " over one iteration (greedy, 1,000 held-out prompts); "
            "the control “SFT instead, 2×” reached 0.700 in 480 steps against SPIN's 120.",
        ),
        (
            (580, 630, 660), (590, 700),
            ROSE + " over two iterations (greedy, 1,000 held-out prompts); "
            "the same number of SFT steps (240) reached 0.590; "
            "the control “SFT instead, 2×” reached 0.700 in 480 steps against SPIN's 240.",
        ),
    ],
)  # fmt: skip
def test_sentence_greedy_exact_match_describes_what_happened(tmp_path, rates, controls, text):
    """Catches "rose" for a fall, the peak instead of the last iteration, and a control with other steps called the
    same number."""
    assert sentence(*full_run(tmp_path, rates, controls)) == text


def test_sentence_change_within_chance_says_so(tmp_path):
    """Catches a gain of five rows with forty lost on the way sold as progress."""
    text = sentence(*full_run(tmp_path, (500, 505), ()))
    assert (
        "rose from 0.500 to 0.505" in text
        and "within what chance gives on these rows (95 % interval −0.008 to +0.018)" in text
    )


@pytest.mark.parametrize(("nll", "change"), [(1.9, "fell from 2.000 to 1.900"), (2.2, "rose from 2.000 to 2.200")])
def test_sentence_without_exact_match_uses_nll(tmp_path, nll, change):
    """Catches a sentence about exact match that nobody measured, and NLL read as if more were better."""
    inputs = {"evaluate": [evaluate_tree(tmp_path / "a", None, 2.0), evaluate_tree(tmp_path / "b", None, nll)]}
    rows = [
        report.RowInputs(label="θ_0", kind="start", evaluate=0),
        report.RowInputs(label="i", kind="iteration", iteration=0, evaluate=1),
    ]
    text = sentence(inputs, report.Config(name="n", profile={}, rows=rows))
    ending = f"{change} over one iteration (20 held-out rows; lower is better)."
    assert text == f"The per-token NLL of held-out real answers {ending}"


def test_sentence_start_alone_claims_no_change(tmp_path):
    """Catches "over no iterations" or a crash where only θ_0 was evaluated."""
    assert "no iteration has been run" in sentence(*full_run(tmp_path, (580,), ()))


def test_sentence_start_not_evaluated_compares_with_nothing(tmp_path):
    """Catches an iteration compared with a start that was not measured."""
    inputs, config = full_run(tmp_path, (580, 660), ())
    rows = [config.rows[0].model_copy(update={"evaluate": -1}), config.rows[1]]
    assert "nothing to compare it with" in sentence(inputs, config.model_copy(update={"rows": rows}))


def test_sentence_and_tiles_put_the_harness_first(tmp_path):
    """Catches a headline about held-out rows where the harness ran, and tiles of another metric or with dashes
    for controls that it did not run on."""
    inputs, config = judged_run(tmp_path)
    rows = [row.model_copy(update={"harness": -1}) if row.kind == "control" else row for row in config.rows]
    html, _, figures = render(tmp_path / "out", inputs, config.model_copy(update={"rows": rows}))
    assert figures["sentence"] == (
        "The harness's average rose from 0.550 to 0.570 over two iterations (2 tasks; higher is better); "
        "the gate's best is iteration 0 (θ_1), at 0.560."
    )
    assert re.findall(r"<strong>(.*?)</strong><small>harness average", html) == ["0.550", "0.560", "0.570"]


def test_sentence_harness_that_says_nothing_gives_way(tmp_path):
    """Catches "rose … higher is better" for an average of tasks of which one is better lower, and a harness average of
    the start alone."""
    inputs, config = judged_run(tmp_path)
    alone = [row.model_copy(update={"harness": -1}) if i else row for i, row in enumerate(config.rows)]
    figures = render(tmp_path / "a", inputs, config.model_copy(update={"rows": alone}))[2]
    assert figures["sentence"].startswith(ROSE)
    file = inputs["harness"][0] / "results.json"
    file.write_text(file.read_text().replace('"higher_is_better": true', '"higher_is_better": false', 1))
    html, _, figures = render(tmp_path / "b", inputs, config)
    assert figures["sentence"].startswith(ROSE) and "<small>exact match, greedy" in html


REPEAT = "The share of their 4-grams that greedy answers repeat"


@pytest.mark.parametrize(
    ("shares", "best", "said"),
    [
        (
            (0.202, 0.05, 0.088, 0.103, 0.3), 2,
            f"{REPEAT} fell from 20.2 % to 8.8 % over two iterations (1,000 held-out prompts; lower is better); it was "
            "best after iteration 0 (θ_1), at 5.0 %; the same number of SFT steps (240) reached 10.3 %.",
        ),
        (
            (0.2, 0.21, 0.3, 0.4, 0.19), 0,
            f"{REPEAT} rose from 20.0 % to 30.0 % over two iterations (1,000 held-out prompts; lower is better); "
            "the gate's best is θ_0, at 20.0 %; the same number of SFT steps (240) reached 40.0 %; the control "
            "“SFT instead, 2×” reached 19.0 % in 480 steps against SPIN's 240.",
        ),
    ],
)  # fmt: skip
def test_headline_is_of_the_gates_metric(tmp_path, shares, best, said):
    """Catches a headline, tiles and first table of exact match or NLL where the run is judged by how much its answers
    repeat themselves; more repetition called better; and a best model or a control that the sentence leaves out."""
    inputs, config = judged_run(tmp_path, metric="repetition/greedy", best=best)
    for tree, share in zip(inputs["evaluate"], shares, strict=True):
        repeating(tree, share)
    html, markdown, figures = render(tmp_path / "out", inputs, config)
    percent = [f"{100 * share:.1f} %" for share in shares]
    assert figures["sentence"] == said and said in markdown.replace("\\", "")
    tiles = re.findall(r"<strong>(.*?)</strong><small>repeated 4-grams, greedy", html)
    assert tiles == [percent[0], percent[2], *percent[3:]]
    columns = [line.split("|") for line in markdown.splitlines()[:7]]
    assert columns[0][2].strip() == "repetition" and [line[2].strip() for line in columns[2:]] == percent
    assert re.findall(r"<th scope=\"col\"[^>]*>(.*?)</th>", html)[1] == "repetition"
    assert "<dt>repetition</dt>" in html and f"<td>{percent[2]}<small>" in html
    lines = [re.split(r" *\| *", line) for line in ui_pages.table(figures["rows"], 5).splitlines()]
    assert lines[0][2] == "repetition" and [line[2] for line in lines[2:]] == percent


@pytest.mark.parametrize(
    ("metric", "wobble", "said", "tile", "column", "chart"),
    [
        (
            "repetition/t0.3", (0.0, 0.0),
            "The share of their 4-grams that answers at temperature 0.3 repeat fell from 41.0 % to 40.0 % over one "
            "iteration (40 held-out prompts; lower is better).",
            "repeated 4-grams, temperature 0.3", "repetition at T = 0.3",
            "What the gate goes by: the share of their 4-grams that answers at temperature 0.3 repeat (lower",
        ),
        (
            "repetition/sampled", (0.2, -0.2),
            "The share of their 4-grams that answers at temperature 1 repeat fell from 41.0 % to 40.0 % over one "
            "iteration (40 held-out prompts; lower is better), a change within what chance gives on these rows (95 % "
            "interval −13.6 to +11.6 points).",
            "repeated 4-grams, temperature 1", "repetition at T = 1",
            "What the gate goes by: the share of their 4-grams that answers at temperature 1 repeat (lower",
        ),
    ],
)  # fmt: skip
def test_headline_table_and_chart_are_of_the_decoder_that_the_gate_goes_by(
    tmp_path, metric, wobble, said, tile, column, chart
):
    """Catches a gate of answers at temperature 0.3 whose report speaks of greedy ones, its interval of greedy ones, and
    no picture of what a run is judged by."""
    inputs, config = judged_run(tmp_path, metric=metric, controls=(), rates=(3, 4), count=40)
    for tree, share, one in zip(inputs["evaluate"], (0.41, 0.4), wobble, strict=True):
        repeating(tree, share, one, metric.split("/")[1])
        repeating(tree, 0.9 - share)
    html, markdown, figures = render(tmp_path / "out", inputs, config)
    assert figures["sentence"] == said
    assert re.findall(rf"<strong>(.*?)</strong><small>{tile}<", html) == ["41.0 %", "40.0 %"]
    lines = [[cell.strip() for cell in line.split("|")] for line in markdown.splitlines()[:4]]
    assert [line[2] for line in lines if len(line) > 2 and "--" not in line[2]] == [column, "41.0 %", "40.0 %"]
    assert chart in html and html.index(chart) < html.index("Exact match on held-out prompts")
    assert f"θ_0: {column} 0.410" in html


def test_change_of_repetition_within_chance_says_so_and_other_metrics_have_no_column_of_it(tmp_path):
    """Catches a fall of a hundredth on rows that differ by four tenths sold as progress, and a second headline."""
    inputs, config = judged_run(tmp_path, metric="repetition/greedy", controls=(), rates=(3, 4), count=40)
    for tree, share, wobble in zip(inputs["evaluate"], (0.41, 0.4), (0.2, -0.2), strict=True):
        repeating(tree, share, wobble)
    said = render(tmp_path / "out", inputs, config)[2]["sentence"]
    assert f"{REPEAT} fell from 41.0 % to 40.0 % over one iteration" in said
    assert "within what chance gives on these rows (95 % interval −13.6 to +11.6 points)" in said
    inputs, config = judged_run(tmp_path / "other", metric="nll/real", controls=(), rates=(3, 4), count=40)
    html, markdown, figures = render(tmp_path / "b", inputs, config)
    assert figures["sentence"].startswith("The per-token NLL of held-out real answers rose from 2.100 to 2.113")
    assert "<small>NLL per token" in html and "repetition" not in markdown.splitlines()[0]
    assert "<dt>repetition</dt>" not in html.partition('<section id="style">')[0]


@pytest.mark.parametrize(
    ("gain", "doubt"),
    [
        (0.015, ", a change within the tasks' standard errors (95 % interval −0.005 to +0.035, items not paired)."),
        (0.025, "."),
    ],
)
def test_sentence_change_of_the_harness_within_its_errors_says_so(tmp_path, gain, doubt):
    """Catches "rose" without a doubt for a change that two tasks with errors of 0.01 each do not show, and a doubt
    about a larger one."""
    task = {"value": 0.5, "stderr": 0.01, "higher_is_better": True}
    rows = []
    for i, kind in enumerate(("start", "iteration")):
        row = model_row(read_model(f"θ_{i}", kind, i - 1, None, None, None), None)
        rows.append(row | {"harness": {"average": 0.5 + gain * i, "tasks": {"a": task, "b": task}}})
    text = f"rose from 0.500 to {0.5 + gain:.3f} over one iteration (2 tasks; higher is better)"
    assert verdict(rows) == f"The harness's average {text}{doubt}"
