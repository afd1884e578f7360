"""README's picture is of the report as it is now, and stands alone."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from spin_core.stages import report
from tests.architecture.scan import ROOT
from tests.benchmarks import report_picture
from tests.report.made_up import full_run, render

README = (ROOT / "README.md").read_text(encoding="utf-8")


def texts(svg: str) -> list[str]:
    """What a picture says, element by element. Raises ParseError for what is no XML."""
    return ["".join(one.itertext()) for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_picture_has_what_the_reports_first_screen_has(tmp_path):
    """Catches a picture that says something else than the report, or is none once it stands alone in a file."""
    inputs, config = full_run(tmp_path, controls=())
    for tree in inputs["evaluate"]:
        metrics = json.loads((tree / "metrics.json").read_text())
        (tree / "metrics.json").write_text(json.dumps(metrics | {"loops/greedy": 0.3, "truncated/greedy": 0.1}))
    page = render(tmp_path / "out", inputs, config)[0]
    drawn = report_picture.picture(page)
    said = texts(drawn)
    verdict = re.findall(r'<p class="verdict">(.*?)</p>', page)[0]
    assert said[:2] == ["spinloop report", "demo"] and " ".join(said[2:]).startswith(verdict)
    assert ET.fromstring(drawn)[0].text == verdict, "what a screen reader says"
    assert all(title in " ".join(said) for title in report_picture.CHARTS)
    assert not re.search(r'(?:href|src)="(?!#)|url\((?!#)', drawn), "it fetches something"
    assert drawn == report_picture.picture(page)


def test_page_that_is_no_report_is_refused():
    """Catches an empty picture of whatever file was named."""
    with pytest.raises(ValueError, match=r"give the report\.html of a run"):
        report_picture.picture("<html><h1>404</h1></html>")


def test_readmes_picture_is_of_todays_report():
    """Catches a report that looks otherwise by now: `make report-picture` draws it anew."""
    (place,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    drawn = (ROOT / place).read_text(encoding="utf-8")
    assert ROOT / place == report_picture.PICTURE
    assert ET.fromstring(drawn).get("data-report-version") == str(report.VERSION)
    assert len(drawn) < 100_000 and texts(drawn)[:2] == ["spinloop report", "demo"]
