"""What the code imports is what pyproject.toml declares, and an extra is imported only where it is used."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata

from tests.architecture.scan import ROOMS, ROOT, imports, module_name, python_files, tracked_files, where
from tests.architecture.test_constraints import canonical

PRODUCT = ("flows", "tasks", "spin_core")
ELSEWHERE = {"vllm"}  # in an interpreter of its own (deployments/vllm-env.sh), as it cannot share one with Prefect
DEVELOPERS = ("dev", "bench", "browser", "docs")
OURS = re.compile(r"pip3? install[^`\n]*(?<![\w./-])spinloop(?![\w/-])")


def declared() -> tuple[set[str], set[str]]:
    """Canonical names of what every installation has, and of what users' extras add."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: listed for name, listed in project["optional-dependencies"].items() if name not in DEVELOPERS}
    return {canonical(one) for one in project["dependencies"]}, {canonical(n) for one in extras.values() for n in one}


def distributions(module: str) -> set[str]:
    """Canonical names of the packages that have this top-level module; its own name where none is installed."""
    return {canonical(name) for name in metadata.packages_distributions().get(module, [module])}


def imported(top: bool) -> dict[str, str]:
    """Third-party top-level module → the first line that imports it. `top`: only what runs when the module is."""
    lines: dict[str, str] = {}
    for file in python_files(*PRODUCT):
        source, name = file.read_text(encoding="utf-8"), module_name(file)
        for line, target in imports(source, name, file.name == "__init__.py", top):
            lines.setdefault(target.split(".")[0], f"{where(file)}, line {line}")
    return {name: at for name, at in lines.items() if name not in {*ROOMS, *sys.stdlib_module_names}}


def test_every_import_is_declared():
    """Catches a module that is there because another package brings it, until a release of that no longer does."""
    always, extras = declared()
    lines = imported(top=False)
    assert {"torch", "prefect", "s3fs", "deepspeed"} <= lines.keys()
    missing = [f"{at}: {name}" for name, at in lines.items() if not distributions(name) & (always | extras)]
    missing = [one for one in missing if one.rpartition(" ")[2] not in ELSEWHERE]
    assert not missing, "not in pyproject.toml, neither as a dependency nor in an extra:\n" + "\n".join(missing)


def test_extra_is_imported_only_where_it_is_used():
    """Catches an import at the top of a module that a plain installation cannot do."""
    always, _ = declared()
    bad = [f"{at}: {name}" for name, at in imported(top=True).items() if not distributions(name) & always]
    assert [one for one in bad if one.rpartition(" ")[2] not in ELSEWHERE] == []


def test_every_dependency_is_imported():
    """Catches a dependency that nothing needs any more, which everybody still installs."""
    always, _ = declared()
    assert always <= {name for module in imported(top=False) for name in distributions(module)}


def test_no_hint_installs_spinloop_from_an_index():
    """Catches `pip install` of our name: no such package is published, and whoever registers it would be installed."""
    assert OURS.search("`pip install 'spinloop[s3]'`") and OURS.search("pip install spinloop")
    assert not OURS.search("pip install dist/spinloop-0.1.0-py3-none-any.whl") and not OURS.search("pip install -e '.'")
    texts = [file for file in tracked_files() if file.suffix in (".py", ".md", ".sh", ".yaml", ".toml", ".txt")]
    bad = [where(file) for file in texts if OURS.search(file.read_text(encoding="utf-8", errors="replace"))]
    assert [name for name in bad if name != where(ROOT / "tests/architecture/test_dependencies.py")] == []
