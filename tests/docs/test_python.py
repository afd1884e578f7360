"""The Python of the pages: each block is Python, and what needs nothing that is not here is run as it stands."""

from __future__ import annotations

import ast
import importlib
import io
from contextlib import redirect_stdout

import pytest

from tests.docs import blocks

SHOWN = blocks.of("python")
RUN = [block for block in SHOWN if not block.needs and not block.title]
"""Blocks with a title are parts of files (test_extending.py). What needs minutes tests/flows/test_api.py runs."""


@pytest.mark.parametrize("block", SHOWN, ids=[block.place for block in SHOWN])
def test_names_that_python_imports_are_there(block):
    """Catches a page that imports what was renamed or moved, and text that is no Python."""
    for node in ast.walk(ast.parse(block.text, block.place)):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in ("flows", "spin_core", "tasks")
        ):
            if block.title:
                continue  # of a file that may not be there yet
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.parametrize("page", sorted({block.page for block in RUN}))
def test_python_of_a_page_runs_and_prints_what_the_page_says(page):
    """Catches an example that fails, and a printed value that is not the one in the page: a block's last line has it
    behind `print(…)  # …`."""
    names: dict[str, object] = {}
    for block in [one for one in RUN if one.page == page]:
        out = io.StringIO()
        with redirect_stdout(out):
            exec(compile(block.text, block.place, "exec"), names)
        last = block.text.splitlines()[-1]
        if last.startswith("print("):
            assert out.getvalue().strip() == last.rpartition("# ")[2].strip()
