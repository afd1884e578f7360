"""What the pages say of the code is so: the paths that they name, and CONTRIBUTING's table of directions."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from datetime import UTC, datetime

import pytest

from spin_core.analysis import account
from spin_core.report import trained
from spin_core.store import keep, roots, runs
from tests.architecture.directions import MAY_IMPORT
from tests.architecture.reference import stages, store_files
from tests.architecture.scan import ROOT, calls, module_name, python_files, tracked_files
from tests.architecture.update_code_digests import modules
from tests.architecture.update_reference import COMMAND, PAGES, path

NAMED = re.compile(r"(?<![\w./-])(?:flows|tasks|spin_core|tests|deployments|docs)/[\w./-]*[\w/]")


def absent_paths(text: str) -> list[str]:
    """Paths of this repository that `text` names and that are not there. The title of a block may be a new file."""
    text = re.sub(r'(?m)^```\w+ title="[^"]+"$', "", text)
    return [path for path in NAMED.findall(text) if not (ROOT / path).exists()]


def test_paths_named_in_the_pages_exist():
    """Catches a page that sends its reader to a file that moved. (The CHANGELOG names files that are gone.)"""
    pages = [file for file in tracked_files() if file.suffix in (".md", ".yaml", ".sh") and file.name != "CHANGELOG.md"]
    assert len(pages) > 20
    absent = {str(page.relative_to(ROOT)): absent_paths(page.read_text(encoding="utf-8")) for page in pages}
    assert not {page: paths for page, paths in absent.items() if paths}


def test_absent_path_is_seen():
    """Catches a pattern that sees no path, or one inside a URL."""
    assert absent_paths("see `tests/nowhere.py`, flows/spin.py. https://x.org/docs/y.md") == ["tests/nowhere.py"]


def test_contributing_has_the_table_of_directions():
    """Catches a page that allows what the test of directions refuses, and a package that no reader is introduced to."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `(\w+)` \| .+ \| ([\w, –]+) \|$", text)
    table = {name: set() if allowed == "–" else set(allowed.split(", ")) for name, allowed in rows}
    assert table == {name: allowed for name, allowed in MAY_IMPORT.items() if name != "errors"}


def full_marks() -> dict[str, set[str]]:
    """Test file → its tests of which the mark `full` holds at least some cases."""
    marked: dict[str, set[str]] = {}
    for file in python_files("tests"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any("mark.full" in ast.unparse(d) for d in node.decorator_list):
                marked.setdefault(file.relative_to(ROOT).as_posix(), set()).add(node.name)
    return marked


def test_contributing_lists_what_only_test_all_has():
    """Catches a test that leaves `make test` without a word on what still proves its promise there. (Cases that are
    marked by name in a list above the test, as in training/, are in the table by hand.)"""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `([\w/]+\.py)`: (.+) \| .+ \|$", text)
    listed = {name: set(re.findall(r"`(test_\w+)`", tests)) for name, tests in rows}
    assert len(rows) == len(listed) and all(tests <= listed.get(name, set()) for name, tests in full_marks().items())
    assert all((ROOT / name).read_text().count(f"def {test}(") for name in listed for test in listed[name])


@pytest.mark.parametrize("name", PAGES)
def test_generated_page_is_what_the_code_says(name):
    """Catches a setting, option, figure, stage or file that was changed and that the page still has as it was."""
    assert path(name).read_text(encoding="utf-8") == PAGES[name](), f"docs/{name} is stale; run {COMMAND}"


def test_no_page_is_generated_beside_these():
    """Catches a generated page that no test holds to the code."""
    pages = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "docs").glob("*.md")}
    said = {name for name, text in pages.items() if "\nGenerated from " in text and COMMAND in text}
    assert said == set(PAGES)


@pytest.mark.parametrize("stage", modules())
def test_stage_says_what_each_version_changed(stage):
    """Catches a VERSION that rises without a word on what changed, and a history of another stage's."""
    module = modules()[stage]
    assert [*stages.history(module)] == [*range(2, module.VERSION + 1)]


@pytest.mark.parametrize("stage", modules())
def test_stage_says_what_it_reads_and_writes(stage):
    """Catches a stage whose inputs and outputs its docstring does not give in the form that the page is made of."""
    _, labelled = stages.parts(inspect.getdoc(modules()[stage]) or "")
    assert {"inputs", "outputs"} <= labelled.keys()


def test_files_of_a_run_are_all_on_the_page():
    """Catches a file that a run's folder gets and that the drawing of the folder does not have."""
    known, seen = store_files.page(), set[str]()
    for file in python_files("flows", "tasks", "spin_core"):
        if ".write_run_file(" in (text := file.read_text(encoding="utf-8")):
            written = [call for _, name, call in calls(ast.parse(text)) if name.endswith(".write_run_file")]
            seen |= {_value(call.args[1], file) for call in written}
    names = seen - {""}
    assert len(names) > 7 and {name for name in names if f"`{name}`" not in known} == set()
    assert all(
        f"`{name}`" in known for name in (runs.BEST, runs.ORDER, trained.ROWS, trained.TOKENS, roots.LIST, keep.FILE)
    )
    assert account.FILE.fullmatch(account.name_of(datetime.now(UTC), "0" * 6)) and "`costs-<time>-<id>.json`" in known


def _value(node, file) -> str:
    """The text of a constant, or of a name of a module's; empty for what a run makes up."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    module = importlib.import_module(module_name(file))
    owner = getattr(module, node.value.id, None) if isinstance(node, ast.Attribute) else module
    value = getattr(owner, node.attr if isinstance(node, ast.Attribute) else node.id, "")
    return value if isinstance(value, str) else ""
