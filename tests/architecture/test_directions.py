"""The packages of spin_core import in one direction, and nothing imports in a circle."""

from __future__ import annotations

import pytest

from tests.architecture.directions import MAY_IMPORT, circles, graph, packages, sources, wrong_directions
from tests.architecture.scan import ROOT, python_files

EDGES = graph(sources(python_files("spin_core", "tasks", "flows")))


def test_packages_import_in_the_allowed_directions():
    """Catches a helper that is fetched from a package above: the next reader then needs both to read one."""
    bad = wrong_directions(EDGES)
    assert not bad, "move what is shared down, or change MAY_IMPORT and say why:\n" + "\n".join(bad)


@pytest.mark.parametrize("edges", [EDGES, packages(EDGES)], ids=["files", "packages"])
def test_nothing_imports_in_a_circle(edges):
    """Catches two files (or packages) that cannot be read, moved or tested one without the other."""
    assert not circles(edges), "\n".join(" ↔ ".join(group) for group in circles(edges))


def test_top_of_spin_core_is_the_table():
    """Catches a module that was put at the top again, and a package without a line in the table."""
    listed = [path for path in (ROOT / "spin_core").iterdir() if path.name[0] not in "_."]
    assert {path.stem for path in listed if not path.is_symlink()} == set(MAY_IMPORT)
    assert [path.name for path in listed if path.is_symlink()] == ["deployments"]  # data, which a wheel has there


PLANTED = {
    "spin_core.config.a": "from spin_core.config import b",
    "spin_core.config.b": "def f():\n    from spin_core.config.a import x",
    "spin_core.store.c": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import spin_core.report.d",
    "spin_core.report.d": "import json",
}


def test_planted_circle_and_direction_are_caught():
    """Catches a scanner that looks at module level only, or takes `from package import module` for the package."""
    edges = graph(PLANTED)
    assert circles(edges) == [["spin_core.config.a", "spin_core.config.b"]]
    assert wrong_directions(edges) == ["spin_core.store.c imports spin_core.report.d: store may not import report"]
    several = {"spin_core.data.a": "import spin_core.job", "spin_core.job": "import spin_core.data.b"}
    assert circles(packages(graph({**several, "spin_core.data.b": ""}))) == [["spin_core.data", "spin_core.job"]]
    assert not circles(graph({**several, "spin_core.data.b": ""}))
