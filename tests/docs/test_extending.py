"""docs/extending.md: its four changes fit the code as it is, pass their own tests, and keep the rules of the rooms."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs import blocks
from tests.docs.blocks import Block
from tests.docs.edits import copy_of_the_tree, put
from tests.flows.fixtures import TINY

PAGE = "docs/extending.md"
CHANGES = [block for block in blocks.blocks() if block.page == PAGE and block.title]
OWN = [block.title for block in CHANGES if block.title.startswith("tests/") and block.language == "python"]
OF_LOSSES = ("test_gradient_is_that_of_finite_differences", "test_examples_of_several_processes_sum_to_the_batch")
"""What tests/training/test_objectives.py asks of every loss."""


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the repository with everything that the page adds. Beside it lies what runs of it write."""
    root = copy_of_the_tree(tmp_path_factory.mktemp("extended") / "code")
    for block in CHANGES:
        put(block, root)
    return root


def done(root: Path, *command: object) -> str:
    """What a Python process in the copy prints, whose modules are the copy's; it must end well."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTEST_"))}
    ours = {"PYTHONPATH": str(root), "PREFECT_HOME": str(root.parent / "prefect")}
    words = [sys.executable, *map(str, command)]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=root, env=kept | ours, timeout=500, check=False)
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-6000:]
    return ended.stdout


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> Path:
    """The tiny profile with the new loss, engine, stage and tracker."""
    data = {**TINY, "excerpt": {"pairs": 4}}
    data["finetune"] = {**TINY["finetune"], "loss": "squared"}
    data["generate"] = {**TINY["generate"], "engine": "plain"}
    data["runtime"] = {**TINY["runtime"], "trackers": ["csv"]}
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_changes_of_the_page_pass_their_tests(extended):
    """Catches a page whose edits no longer fit the code, and an example that does not do what it says. The loss also
    passes what every loss has to."""
    assert len(OWN) == 4
    tests = [*OWN, *(f"tests/training/test_objectives.py::{name}" for name in OF_LOSSES)]
    printed = done(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests)
    assert " passed" in printed and "skipped" not in printed, printed


def test_plan_shows_the_stage_of_the_page(extended, profile):
    """Catches a stage that has a file and no place in the DAG."""
    shown = done(extended, "-m", "flows.cli", "plan", profile, "--store", extended.parent / "store")
    assert "excerpt[iter 0]" in shown and "excerpt[iter 1]" in shown


@pytest.mark.full
def test_run_with_all_changes_of_the_page(extended, profile):
    """Catches examples that pass alone and not in a run: pairs by the plain engine, a training by the squared loss, the
    sheet of each iteration, the csv board; and a second run in which all of it is cached."""
    run = ["-m", "flows.cli", "run", profile, "--store", extended.parent / "store"]
    done(extended, *run)
    sheets = sorted((extended.parent / "store" / "spinloop-store-v1" / "latest").glob("*excerpt*"))
    assert len(sheets) == 2 and all((sheet / "excerpt.md").read_text().count("**generated**") == 4 for sheet in sheets)
    (board,) = (extended.parent / "store").glob("trackers/csv/tiny/*.csv")
    curves = {line.partition(",")[0] for line in board.read_text().splitlines()}
    assert {"finetune/loss", "finetune/rewards/margins", "sft/loss"} <= curves
    assert "0 steps ran" in done(extended, *run)


@pytest.mark.full
def test_changes_of_the_page_keep_the_rules_of_the_rooms(extended):
    """Catches an example that a contributor could not commit: imports, shape, sizes, docstrings, types, format."""
    subprocess.run(["git", "init", "-q"], cwd=extended, check=True)  # these tests ask git which files there are
    for command in ("update_reference", "update_code_digests"):
        done(extended, "-m", f"tests.architecture.{command}")
    done(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/architecture", "--ignore",
         "tests/architecture/test_repository.py")  # fmt: skip
    new = [block.title for block in CHANGES]
    done(extended, "-m", "ruff", "check", *new)
    done(extended, "-m", "ruff", "format", "--check", *new)
    done(extended, "-m", "mypy", "spin_core/engines", "spin_core/stages/excerpt.py", "spin_core/trackers/boards.py")


def made(text: str, title: str, language: str = "diff") -> Block:
    return Block("p.md", 1, language, text, (), title)


def test_edit_that_does_not_fit_is_said(tmp_path):
    """Catches an edit that is put nowhere, or at the first of two places, or over a file."""
    (tmp_path / "a.py").write_text("x = 1\ny = 2\nx = 1\n")
    with pytest.raises(ValueError, match="2 times, not once"):
        put(made("-x = 1\n+x = 2", "a.py"), tmp_path)
    with pytest.raises(ValueError, match="0 times, not once"):
        put(made("-z = 1\n+x = 2", "a.py"), tmp_path)
    with pytest.raises(ValueError, match="is there already"):
        put(made("x = 1", "a.py", "python"), tmp_path)
    put(made(" y = 2\n-x = 1\n+x = 3", "a.py"), tmp_path)
    assert (tmp_path / "a.py").read_text() == "x = 1\ny = 2\nx = 3\n"
