"""Who may import whom, and what an import may load."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.architecture.scan import ROOMS, ROOT, beyond_walls, imports, module_name, python_files, where

ALLOWED: dict[str, set[str] | None] = {  # top-level names besides the standard library; None: any library
    "flows": {
        "flows",
        "tasks",
        "spin_core",
        "prefect",
        "pydantic",
        "yaml",
        "uvicorn",
        "httpx",
        "rich",
        "argcomplete",
    },
    "tasks": {"tasks", "spin_core", "prefect", "pydantic", "httpx"},  # httpx: what Prefect's client raises
    "spin_core": None,
    "deployments": None,
    "tests": None,
}
REFUSED = {
    "flows": {"deployments", "tests"},
    "tasks": {"flows", "deployments", "tests"},
    "spin_core": {"prefect", "flows", "tasks", "deployments", "tests"},
    "deployments": {"deployments", "tests"},
    "tests": {"deployments"},
}
HEAVY = {"torch", "transformers", "datasets", "prefect", "matplotlib", "pyarrow"}

LOADS = """
import importlib, json, sys, traceback
heavy, modules, results = set(json.loads(sys.argv[1])), json.loads(sys.argv[2]), {}
if sys.argv[3]:
    sys.modules[sys.argv[3]] = None
for name in modules:
    try:
        importlib.import_module(name)
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
    for top in sorted(heavy & {m.split(".")[0] for m, v in sys.modules.items() if v is not None}):
        results.setdefault(name, f"loads {top}")
        heavy.discard(top)
print(json.dumps(results))
"""


def loads(modules: list[str], heavy: set[str], blocked: str = "", extra_path: str = "") -> dict[str, str]:
    """Module → which of `heavy` it is the first to load, or the error its import raises; one new process for all of
    them."""
    path = os.pathsep.join(filter(None, [extra_path, str(ROOT)]))
    command = [sys.executable, "-c", LOADS, json.dumps(sorted(heavy)), json.dumps(modules), blocked]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}
    )
    return json.loads(ran.stdout.splitlines()[-1])


def torch_modules() -> set[str]:
    """spin_core modules that load torch or transformers when imported: themselves, or through another module of the
    package."""
    files = {module_name(file): file for file in python_files("spin_core")}
    direct = {
        name: {to for _, to in imports(file.read_text(encoding="utf-8"), name, file.name == "__init__.py", top=True)}
        for name, file in files.items()
    }
    heavy = {name for name, targets in direct.items() if {f.split(".")[0] for f in targets} & {"torch", "transformers"}}
    while True:
        more = {
            name
            for name, targets in direct.items()
            if any(f in heavy or f.rpartition(".")[0] in heavy for f in targets)
        } - heavy
        if not more:
            return heavy
        heavy |= more


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_what_its_wall_allows(room):
    """Catches a stage that imports Prefect, a flow that computes with torch, and code that needs the tests or
    deployments to be there."""
    bad = [
        f"{where(f)}, {hit}"
        for f in python_files(room)
        for hit in beyond_walls(f.read_text(encoding="utf-8"), module_name(f), ALLOWED[room], REFUSED[room])
    ]
    assert not bad, f"{room}/ may not import these (CONTRIBUTING.md, The rooms):\n" + "\n".join(bad)


def test_spin_core_without_prefect_every_module_imports():
    """Catches an import of Prefect that the syntax tree does not show: vLLM's and the GPU machine's interpreters have
    no Prefect."""
    modules = sorted(
        {module_name(file) for file in python_files("spin_core")} - torch_modules() - {"spin_core.__main__"}
    )
    assert len(modules) > 10
    assert not loads(modules, {"prefect", "flows", "tasks"}, blocked="prefect")


def test_import_of_core_config_and_stages_loads_nothing_heavy():
    """Catches a top-level import of torch or pyarrow that makes `spinloop plan` and every child's start take
    seconds."""
    stages = [module_name(file) for file in python_files("spin_core/stages")]
    assert len(stages) > 8
    assert not loads(["spin_core", "spin_core.config.profile", *sorted(stages)], HEAVY)


def test_commands_that_run_no_flow_load_no_prefect():
    """Catches an import of Prefect (1.3 s of a core) at the start of `store`, `report`, `push` and `import`."""
    commands = ["__main__", "store", "report", "push", "imports"]
    assert not loads([f"flows.cli.{name}" for name in commands], HEAVY | {"prefect"})


def test_loads_a_heavy_and_a_blocked_import_are_seen(tmp_path):
    """Catches a `loads` that sees nothing, with which the two tests above would always pass."""
    (tmp_path / "slow_one.py").write_text("import pyarrow\n")
    (tmp_path / "blocked_one.py").write_text("def f():\n    import prefect\nf()\n")
    results = loads(["json", "slow_one", "blocked_one"], HEAVY, blocked="prefect", extra_path=str(tmp_path))
    assert results["slow_one"] == "loads pyarrow" and "prefect" in results["blocked_one"] and "json" not in results


def test_import_spin_core_takes_less_than_half_a_second():
    """Catches work at import time (reading files, compiling models). Best of three: other work on the machine is not
    ours."""
    code = "import time; t = time.perf_counter(); import spin_core; print(time.perf_counter() - t)"
    took = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        for _ in range(3)
    ]
    assert min(took) < 0.5, f"import spin_core took {min(took):.2f} s"
