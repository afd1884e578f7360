"""What the pages say of the code is so: the paths that they name, and CONTRIBUTING's table of directions."""

from __future__ import annotations

import ast
import re

from tests.architecture import update_settings_page
from tests.architecture.directions import MAY_IMPORT
from tests.architecture.scan import ROOT, python_files, tracked_files

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


def test_page_of_the_settings_is_the_config_models():
    """Catches a setting, default or bound that was changed and that the page still has as it was."""
    stale = f"docs/settings.md is stale; run {update_settings_page.COMMAND}"
    assert update_settings_page.PAGE.read_text(encoding="utf-8") == update_settings_page.page(), stale
