"""The example sets of docs/examples are read whole, as their profiles say, and a run of them ends with a report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.architecture.scan import ROOT

EXAMPLES = ROOT / "docs" / "examples"
PROFILES = sorted(EXAMPLES.glob("*.yaml"))


def named(profile: Path) -> list[int]:
    """The numbers of rows that the first line of a profile names."""
    return [int(number) for number in re.findall(r"\d+", profile.read_text(encoding="utf-8").partition("\n")[0])]


def test_there_are_two_and_a_page_leads_to_each():
    """Catches an example that nobody finds, and data without a profile."""
    page = (ROOT / "docs" / "first-run.md").read_text(encoding="utf-8")
    names = {profile.stem for profile in PROFILES}
    assert names == {data.stem for data in EXAMPLES.glob("*.jsonl")} == {"library", "bakery"}
    assert all(f"docs/examples/{profile.name}" in page for profile in PROFILES)


@pytest.mark.parametrize(("name", "rows"), [("library", 44), ("bakery", 64)])
def test_example_is_read_whole(name, rows, spinloop):
    """Catches rows that are rejected or cut, a layout that is not the one the profile speaks of, and a number in the
    profile that is not the data's."""
    profile = EXAMPLES / f"{name}.yaml"
    code, out, err = spinloop("data", profile, "--json")
    assert code == 0, err
    seen = json.loads(out.splitlines()[-1])
    assert (seen["train"] + seen["test"], seen["rejected"], seen["failures"]) == (rows, [], [])
    lines = (EXAMPLES / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == named(profile)[0] and len(set(lines)) == len(lines)
    assert str(rows) in profile.read_text(encoding="utf-8")


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.stem)
def test_example_is_planned(profile, spinloop, tmp_path):
    """Catches a profile that the command line takes and a run would not: lengths beyond the model's context."""
    code, out, err = spinloop("plan", profile, "--store", tmp_path / "store")
    assert code == 0, err
    assert "would run  report" in out and "\n0 cached, " in out


@pytest.mark.full
def test_example_runs_to_its_report(spinloop, server, tmp_path):
    """Catches an example that its own first lines name as a command and that does not end well."""
    code, out, err = spinloop("run", EXAMPLES / "library.yaml", "--store", tmp_path / "store", "--json")
    assert code == 0, err
    made = json.loads(out.splitlines()[-1])
    assert made["cached"] == 0 and Path(made["report"]).is_file()
