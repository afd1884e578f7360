"""Writes tests/golden/code_digests.json: each stage's VERSION and the digest of its code. Prints what changed and
refuses nothing.

Run it after a change to a stage, once you have decided whether VERSION must be raised: python -m
tests.architecture.update_code_digests
"""

from __future__ import annotations

import importlib
import json
from types import ModuleType

from tests.architecture.scan import ROOT

GOLDEN = ROOT / "tests" / "golden" / "code_digests.json"
COMMAND = "python -m tests.architecture.update_code_digests"


def modules() -> dict[str, ModuleType]:
    """The stages by their NAME."""
    files = (file.stem for file in (ROOT / "spin_core" / "stages").glob("*.py") if file.stem != "__init__")
    imported = [importlib.import_module(f"spin_core.stages.{file}") for file in sorted(files)]
    return {module.NAME: module for module in imported}


def stages() -> list[str]:
    """Names of the stages."""
    return sorted(modules())


def current(stage: str) -> dict:
    """{version, digest} of a stage as it is now."""
    from spin_core.store.code import code_digest

    module = modules()[stage]
    return {"version": module.VERSION, "digest": code_digest(module.__name__)}


def recorded() -> dict[str, dict]:
    """What the golden file says; nothing where there is none."""
    return json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else {}


def main() -> None:
    """Writes the file and prints one line per stage that differs from it."""
    before, after = recorded(), {stage: current(stage) for stage in stages()}
    for stage in sorted(before.keys() | after.keys()):
        old, new = before.get(stage), after.get(stage)
        if old == new:
            continue
        if old is None or new is None:
            print(f"{stage}: {'new' if old is None else 'gone'}")
            continue
        moved = f"code {old['digest'][:12]} -> {new['digest'][:12]}"
        if old["version"] == new["version"]:
            print(f"{stage}: {moved}, VERSION still {new['version']}: right only if its output is the same")
        else:
            print(f"{stage}: {moved}, VERSION {old['version']} -> {new['version']}")
    GOLDEN.write_text(json.dumps(after, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
