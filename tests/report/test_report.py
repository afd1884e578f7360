"""The report says what the trees say: right figures, nothing fetched, nothing from outside as markup, the same bytes
each time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spin_core.analysis import statistics
from spin_core.errors import BadInput
from spin_core.report.charts import Curve, steps_chart
from spin_core.report.tables import text_table
from spin_core.stages import report
from tests.report.made_up import evaluate_tree, full_run, matches, model_tree, pairs_tree, render


def test_outputs_two_processes_with_other_hash_seeds_are_equal(tmp_path):
    """Catches ids, dates, set order or a user's matplotlibrc in the bytes: every rerun would be another artifact."""
    code = "import sys; from pathlib import Path; from tests.report.made_up import *; root = Path(sys.argv[1])\n"
    code += "render(root / sys.argv[2], *full_run(root / sys.argv[3]))"
    for name in ("1", "2"):
        (tmp_path / f"rc{name}").write_text(f"xtick.major.size: {name}\naxes.linewidth: {name}\n")
        env = {**os.environ, "PYTHONHASHSEED": name, "MATPLOTLIBRC": str(tmp_path / f"rc{name}"), "TZ": f"UTC+{name}"}
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), f"out{name}", f"in{name}"],
            check=True,
            env=env,
            cwd=Path(report.__file__).parents[2],
        )
    hashes = [
        {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / f"out{n}").iterdir()}
        for n in ("1", "2")
    ]
    assert hashes[0] == hashes[1] and set(hashes[0]) == {"report.html", "report.md", "report.json"}


def test_profile_other_key_order_gives_same_bytes(tmp_path):
    """Catches a page in the profile's own order: equal cache keys would have unequal outputs."""
    inputs, config = full_run(tmp_path)
    turned = config.model_copy(update={"profile": dict(reversed(config.profile.items()))})
    assert render(tmp_path / "a", inputs, config) == render(tmp_path / "b", inputs, turned)


def test_figures_full_run_are_those_of_the_trees(tmp_path):
    """Catches rows mixed up, a Δ against the previous model instead of θ_0, and shares of the wrong split."""
    html, markdown, figures = render(tmp_path / "out", *full_run(tmp_path))
    last = figures["rows"][2]
    assert (
        last["label"] == "iteration 1 (θ_2)" and last["greedy"]["value"] == 0.66 and last["nll"] == pytest.approx(2.126)
    )
    assert last["delta"]["greedy"]["value"] == pytest.approx(0.08) and last["delta"]["nll"] == pytest.approx(0.026)
    assert (last["delta"]["greedy"]["gained"], last["delta"]["greedy"]["lost"]) == (120, 40)
    assert last["pairs"] == {"rows": 4000, "identical": 190 / 4000, "truncated": 12 / 4000, "empty": 1 / 4000}
    assert last["steps"] == 120 and last["margin"] == 0.8 and last["accuracy"] == 0.7
    line = next(line for line in markdown.splitlines() if "θ_2" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "iteration 1 (θ_2)", "0.660 (0.630–0.689)", "0.330 (0.302–0.360)", "+0.080", "2.126", "+0.026", "0.800",
        "0.700", "4.8 %", "0.3 %", "< 0.1 %",
    ]  # fmt: skip
    assert "120 gained, 40 lost" in html and "120 rows became right and 40 wrong, of 1,000" in html


def test_markdown_report_begins_with_the_table(tmp_path):
    """Catches a report.md whose first table is not that of the models, padded as a terminal shows it."""
    _, markdown, figures = render(tmp_path / "out", *full_run(tmp_path))
    assert markdown.startswith(text_table(figures["rows"]) + "\n\nExact match rose")


@pytest.mark.parametrize(("rate", "rows"), [(0.58, 1000), (0.0, 10), (1.0, 10), (0.5, 4)])
def test_wilson_bounds_solve_the_score_equation(rate, rows):
    """Catches the Wald interval (no width at 0 and 1): a bound is the true rate 1.96 of its own errors away."""
    interval = statistics.rate(rate, rows)
    low, high = interval.low, interval.high
    assert 0 <= low <= rate <= high <= 1 and low < high
    for bound in {low, high} - {rate}:
        assert abs(rate - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / rows) ** 0.5)


def test_missing_metrics_are_dashes_not_zeros(tmp_path):
    """Catches a run without exact match, pairs or training curves that reads as one which scored 0."""
    inputs = {"evaluate": [evaluate_tree(tmp_path / "a", None, 2.0), evaluate_tree(tmp_path / "b", None, 1.9)]}
    rows = [
        report.RowInputs(label="θ_0", kind="start", evaluate=0),
        report.RowInputs(label="iteration 0 (θ_1)", kind="iteration", iteration=0, evaluate=1),
    ]
    html, markdown, figures = render(tmp_path / "out", inputs, report.Config(name="n", profile={}, rows=rows))
    cells = [cell.strip() for cell in markdown.splitlines()[3].strip("|").split("|")]
    assert cells[1:] == ["–", "–", "–", "1.900", "−0.100", "–", "–", "–", "–", "–"]
    assert figures["rows"][1]["greedy"] is None and figures["rows"][1]["pairs"] is None
    assert html.count("<figure") == 1 and "Exact match on held-out prompts" not in html


def test_rows_without_any_tree_still_make_a_report(tmp_path):
    """Catches a crash on indices of -1 (a run that evaluates nothing)."""
    rows = [
        report.RowInputs(label="θ_0", kind="start", evaluate=-1),
        report.RowInputs(label="i", kind="iteration", iteration=0, evaluate=-1),
    ]
    html, _, figures = render(tmp_path / "out", {}, report.Config(name="n", profile={}, rows=rows))
    assert "does not show whether the model became better" in figures["sentence"] and "<figure" not in html


def test_not_a_number_is_missing_and_is_reported(tmp_path):
    """Catches NaN drawn, compared or written to report.json (not JSON), and a diverged training that nothing reports
    ."""
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
    tree = inputs["evaluate"][1]
    (tree / "metrics.json").write_text(
        json.dumps(
            {"rows": 6, "nll/real": float("nan"), "exact_match/greedy": float("inf"), "spin/margin": float("-inf")}
        )
    )
    lines = [
        json.dumps({"step": i, "loss": float("nan") if i > 2 else 0.5, "rewards/margins": float("nan")})
        for i in range(1, 6)
    ]
    (inputs["finetune"][0] / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    html, _, figures = render(tmp_path / "out", inputs, config)
    row = figures["rows"][1]
    assert row["nll"] is None and row["greedy"] is None and row["margin"] is None
    assert any("not finite in 3 of 5 steps, first at step 3" in note for note in figures["notes"])
    assert "Training loss" in html and "Reward margin" not in html and not re.search(r">[^<]*\bnan\b", html.lower())


def test_pairs_mostly_identical_are_pointed_out(tmp_path):
    """Catches a run whose opponent answers like the data already (nothing to learn) without a word about it."""
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
    inputs["gather"] = [pairs_tree(tmp_path / "pairs", 200, 120, 0, 19)]
    assert render(tmp_path / "out", inputs, config)[2]["notes"] == [
        "iteration 0 (θ_1): 60.0 % of the 200 generated answers it learnt from are the real answer, and such pairs "
        "teach nothing: a higher generate.temperature gives fewer, or rows that the model was not trained on."
    ]


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((18, 18, 18), []),
        ((20, 0, 0), ["10.0 % of the 200 generated answers it learnt from are the real answer, and such pairs "]),
        (
            (0, 20, 0),
            ["10.0 % of the 200 generated answers it learnt from were cut at generate.max_new_tokens: raise"],
        ),
        ((0, 0, 20), ["10.0 % of the 200 generated answers it learnt from are empty: "]),
    ],
)
def test_faults_of_generation_say_what_to_do(tmp_path, counts, said):
    """Catches a note on what is below a tenth, one without a remedy, and two faults under one name."""
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
    inputs["gather"] = [pairs_tree(tmp_path / "pairs", 200, *counts)]
    notes = render(tmp_path / "out", inputs, config)[2]["notes"]
    assert len(notes) == len(said)
    for note, begin in zip(notes, said, strict=True):
        assert note.startswith(f"iteration 0 (θ_1): {begin}")


@pytest.mark.parametrize(
    ("part", "notes"),
    [
        ({}, []),
        ({"loss": "hinge"}, []),
        ({"loss": "unpaired"}, ["loss unpaired: the rewards of training are a times the log-ratio to the opponent."]),
    ],
)
def test_rewards_of_another_loss_are_explained(tmp_path, part, notes):
    """Catches curves of rewards that a reader takes for SPIN's, and a note in reports that were made without it."""
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
    config = config.model_copy(update={"profile": {"finetune": part}})
    assert render(tmp_path / "out", inputs, config)[2]["notes"] == notes


@pytest.mark.parametrize(
    ("profile", "remedy"),
    [
        ({"finetune": {"loss": "unpaired", "sft_weight": 1}}, "raise finetune.unpaired.a, raise finetune.sft_weight"),
        ({"finetune": {"loss": "tspin"}, "overrides": {1: {"finetune": {"loss": "hinge"}}}}, "raise finetune.beta"),
        ({"finetune": {"lr": 2}, "overrides": {"1": {"finetune": {"lr": 1, "loss": "dft"}}}}, "lower finetune.dft."),
        ({"finetune": {"of another version": 1}}, "raise finetune.beta, set"),
    ],
)  # fmt: skip
def test_alarm_of_training_is_that_of_the_iterations_own_loss(tmp_path, profile, remedy):
    """Catches an alarm on the page that differs from the one in training: another loss's, or that of the profile where
    the iteration has its own."""
    inputs, config = full_run(tmp_path, rates=(3, 4, 5), controls=(), count=6)
    lines = [{"loss": 1, "rewards/real": -i, "rewards/margins": i, "logps/real": -9.0 - i} for i in range(40)]
    (inputs["finetune"][1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figures = render(tmp_path / "out", inputs, config.model_copy(update={"profile": profile}))[2]
    assert f"lower finetune.lr, {remedy}" in figures["notes"][0]


def test_alarms_of_an_iteration_stand_below_its_table_and_on_the_page(tmp_path):
    """Catches a collapse that only metrics.jsonl knows of, a note under another iteration's name, and a label that
    reaches the page as markup through a note."""
    inputs, config = full_run(tmp_path, rates=(3, 4, 5), controls=(2,), count=6)
    lines = [
        {
            "loss": 0.5, "pairs": 64, "rewards/real": -i / 10, "rewards/margins": 3 + i / 5, "rewards/accuracies": 1.0,
            "logps/real": -9.0 - i,
        }
        for i in range(1, 41)
    ]  # fmt: skip
    (inputs["finetune"][1] / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html, markdown, figures = render(tmp_path / "out", inputs, config)
    falling, won = figures["notes"]
    assert falling.startswith("iteration 1 (θ_2): step 10 of 40: real answers become less likely")
    rewards = "rewards/real fell from −0.300 to −0.800, logps/real from −12.000 to −17.000, rewards/margins rose from"
    assert f"{rewards} 3.600 to 4.600; " in falling
    assert won.startswith("iteration 1 (θ_2): step 15 of 40: rewards/accuracies was 1.000 for 15 steps")
    assert markdown.split("\n\n")[2] == "\n".join(f"- {note}" for note in figures["notes"])
    for note in figures["notes"]:
        assert f'<p class="note">{note}</p>' in html
    hostile = [row.model_copy(update={"label": "<img src=x>*a*"}) for row in config.rows]
    html, markdown, _ = render(tmp_path / "hostile", inputs, config.model_copy(update={"rows": hostile}))
    assert "<img" not in html + markdown
    assert "- &lt;img src=x&gt;\\*a\\*: step 10 of 40" in markdown


def test_samples_changed_rows_first_and_both_ways(tmp_path):
    """Catches samples chosen to flatter: gains are shown with as many losses, and unchanged rows only after them."""
    inputs, config = full_run(tmp_path, rates=(50, 60), controls=(), count=100)
    html = render(tmp_path / "out", inputs, config)[0]
    shown = re.findall(r'class="tag (gained|lost|changed|same)"', html)
    assert shown[:12] == ["gained"] * 6 + ["lost"] * 6
    assert (shown.count("gained"), shown.count("lost"), len(shown)) == (30, 20, 100)
    assert shown[12:52] == ["gained", "lost"] * 14 + ["gained"] * 10 + ["same"] * 2


def test_damaged_line_names_file_and_line(tmp_path):
    """Catches a skipped line, which would show figures of fewer rows than were evaluated."""
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
    with (inputs["evaluate"][0] / "rows.jsonl").open("a") as out:
        out.write('{"id": ')
    with pytest.raises(BadInput, match=r"rows\.jsonl, line 7"):
        render(tmp_path / "out", inputs, config)


def test_index_beyond_the_inputs_is_refused(tmp_path):
    """Catches a row that silently shows nothing because its index is wrong."""
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
    inputs["gather"] = []
    with pytest.raises(BadInput, match="gather 0"):
        render(tmp_path / "out", inputs, config)


def test_model_tree_without_metrics_file_has_no_curve(tmp_path):
    """Catches a crash on a downloaded model, which has no metrics.jsonl."""
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
    (inputs["finetune"][0] / "metrics.jsonl").unlink()
    assert "Training loss" not in render(tmp_path / "out", inputs, config)[0]


def test_one_step_and_long_training_are_drawn(tmp_path):
    """Catches a curve of one point (invisible without a mark) and of 5,000 points (megabytes of SVG)."""
    for steps_run, name in ((1, "one"), (5000, "many")):
        inputs, config = full_run(tmp_path / name, rates=(3, 4), controls=(), count=6)
        inputs["finetune"] = [model_tree(tmp_path / name / "again", steps_run)]
        html = render(tmp_path / name / "out", inputs, config)[0]
        assert "Training loss" in html and len(html) < 350_000


def test_training_of_one_step_has_a_visible_mark():
    """Catches a line through one point, which draws nothing."""
    chart = steps_chart("loss", [Curve(0, "", 0, [1], [0.5])])
    assert chart is not None and re.search(r"<use [^>]*var\(--c0\)", chart.svg)


def test_label_with_dollar_signs_is_drawn_as_it_is(tmp_path):
    """Catches a label taken for a formula: a wrong one stops the report, a right one changes the label."""
    inputs, config = full_run(tmp_path, rates=(3, 4), controls=(), count=6)
    rows = [row.model_copy(update={"label": "$\\frac{$"}) for row in config.rows]
    assert "$\\frac{$</text>" in render(tmp_path / "out", inputs, config.model_copy(update={"rows": rows}))[0]


def test_matches_flips_only_move_rows():
    """Catches made-up inputs that do not hold what the tests above take from them."""
    assert sum(matches(10, 4, 3)) == 4 and matches(10, 4, 3)[3:7] == [True] * 4
