"""Every column of every page has a tooltip, and the same text in a list that needs no pointer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spin_core.analysis.columns import COLUMNS, DATA, LENGTHS, NAME, PAGES, WATCH, column_text
from spin_core.analysis.evaluation import heading
from spin_core.analysis.gate_metric import column
from spin_core.report import page
from spin_core.report.run import sections
from spin_core.report.tables import TITLES, ReportTable, TableLine, tables
from spin_core.stages import report
from tests.report.columns import HEAD, without_tooltip
from tests.report.made_up import judged_run, render
from tests.report.test_page import run_part, steps
from tests.report.test_watch import seen

ROOT = Path(__file__).parents[2]


def test_every_column_of_a_report_has_a_tooltip(tmp_path):
    """Catches a table that is drawn without its texts, a column without one, and a list that lacks a column. With
    decoders of other temperatures, harness, overrides, a ledger and what is new."""
    inputs, config = judged_run(tmp_path)
    config.profile["overrides"] = {"1": {"finetune": {"lr": 1}}}
    html, _, figures = render(tmp_path / "out", inputs, config)
    new = sections(steps(), lambda step: None, seen=seen(7))
    html = html.replace(report.STEPS_MARK, run_part() + new)
    assert without_tooltip(html) == [] and len(HEAD.findall(html)) > 50
    shown = {head for table in tables(figures["rows"]) if table.id != "harness" for head in table.columns}
    assert len(shown) > 20 and {*shown, *TITLES} <= COLUMNS.keys()


@pytest.mark.parametrize("html", ["<table><th scope=\"col\" title=\"\">x</th><dt>x</dt><dd>y",
                                  "<table><th scope=\"col\">x</th><dt>x</dt><dd>y",
                                  "<table><th scope=\"col\" title=\"y\">x</th></details><dt>x</dt><dd>y"])  # fmt: skip
def test_column_without_a_tooltip_is_seen(html):
    """Catches a check that sees nothing."""
    assert without_tooltip(html) == ["x"]


def test_a_column_of_another_decoder_says_what_the_plain_one_says():
    """Catches a head with a temperature that has no text, or that of another figure."""
    for metric in ("repetition/t0.3", "repetition/deployed", "exact_match/t0.7", "repetition/greedy"):
        assert column_text(column(metric), COLUMNS) == COLUMNS[column(metric).split(" ")[0]]
    evaluation = PAGES["spinloop evaluate"]
    for metric in ("exact_match/greedy", "truncated/t0.3", "length/sampled_tokens", "loops/deployed"):
        head = heading(metric)
        assert column_text(head, evaluation) == evaluation[head.partition(",")[0]] != evaluation[NAME]
    assert column_text("nothing", COLUMNS) == ""


def test_the_key_has_the_signs_that_are_in_the_lines():
    """Catches a sign that nothing explains, and an explanation of one that is not there."""
    lines = [TableLine("θ_1", [("–", "")], best=True)]
    with_signs = dict(ReportTable("a", "", "", "model", ["NLL"], lines, COLUMNS).key())
    without = dict(ReportTable("a", "", "", "model", ["NLL"], [TableLine("θ_1", [("1", "")])], COLUMNS).key())
    assert with_signs.keys() - without.keys() == {"–", "★"} and without.keys() == {"model", "NLL"}


def test_every_text_is_of_a_column():
    """Catches a text of a column that no table has any more: each head stands in the code of the pages."""
    files = [*Path(page.__file__).parent.glob("*.py"), *(ROOT / "spin_core").glob("preview/facts.py")]
    files += [ROOT / f"spin_core/{name}.py" for name in ("data/row_change", "analysis/evaluation",
                                                         "analysis/gate_metric")]  # fmt: skip
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    for name, texts in PAGES.items():
        for head in texts:
            written = (head.replace("θ_0", "{start}"), head)
            assert head == NAME or any(re.search(f"[\"'`]{re.escape(one)}[\"'`]", code) for one in written), (
                name,
                head,
            )
            assert texts[head].count("`") % 2 == 0 and len(texts[head]) < 320, (name, head)
    assert {**DATA, **WATCH, **LENGTHS}.keys() <= {head for texts in PAGES.values() for head in texts}
