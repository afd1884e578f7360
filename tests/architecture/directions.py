"""Which part may import which, as a table, and the two checks of it: a wrong direction, a circle.

Imports inside functions and under TYPE_CHECKING count: they are what a reader follows.
"""

from __future__ import annotations

from pathlib import Path

from tests.architecture.scan import imports, module_name

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "store": set(),
    "job": {"config"},
    "analysis": {"config", "job"},
    "data": {"config", "job"},
    "sources": {"config", "data", "store"},
    "runtime": {"config", "job", "sources", "store"},
    "modeling": {"config", "data", "job", "runtime", "sources"},
    "training": {"config", "job", "modeling", "runtime"},
    "engines": {"config", "data", "job", "modeling", "runtime", "sources"},
    "report": {"analysis", "config", "data", "job", "sources", "store"},
    "stages": {
        "analysis", "config", "data", "engines", "job", "modeling", "report", "runtime", "sources", "store", "training",
    },
    "preview": {"analysis", "config", "data", "job", "modeling", "sources", "stages"},
    "trackers": {"config", "job", "runtime"},
    "estimate": {"config", "data", "engines", "job", "runtime", "stages"},
}  # fmt: skip
"""Package (or module) at the top of spin_core → what else of spin_core it may import. All may import errors and
themselves."""


def graph(files: dict[str, str]) -> dict[str, set[str]]:
    """Module → the modules of `files` (module name → source) that it imports."""
    known = set(files)
    edges: dict[str, set[str]] = {}
    for module, source in files.items():
        targets = set()
        for _, name in imports(source, module, package=_is_package(module, known)):
            # `from a import b`: a.b where that is a module, else a.
            targets.add(name if name in known else name.rpartition(".")[0])
        edges[module] = (targets & known) - {module}
    return edges


def wrong_directions(edges: dict[str, set[str]]) -> list[str]:
    """Imports inside spin_core that MAY_IMPORT does not allow, and packages that it does not name."""
    bad = []
    for module, imported in sorted(edges.items()):
        for other in sorted(imported):
            if not (module.startswith("spin_core.") and other.startswith("spin_core.")):
                continue
            here, there = module.split(".")[1], other.split(".")[1]
            if here not in MAY_IMPORT:
                bad.append(f"{module}: {here} is not in the table of directions")
            elif there not in MAY_IMPORT[here] | {here, "errors"}:
                bad.append(f"{module} imports {other}: {here} may not import {there}")
    return bad


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which imports all others, directly or through them (Tarjan's strong components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circular: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                circular.append(sorted(group))

    for module in sorted(edges):
        if module not in index:
            visit(module)
    return circular


def packages(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same graph between the packages of spin_core, flows and tasks."""
    merged: dict[str, set[str]] = {}
    for module, imported in edges.items():
        here = _package(module)
        merged.setdefault(here, set()).update(_package(other) for other in imported)
    return {name: others - {name} for name, others in merged.items()}


def sources(files: list[Path]) -> dict[str, str]:
    """Module name → source text."""
    return {module_name(file): file.read_text(encoding="utf-8") for file in files}


def _package(module: str) -> str:
    return ".".join(module.split(".")[:2])


def _is_package(module: str, known: set[str]) -> bool:
    return any(name.startswith(f"{module}.") for name in known)
