"""What no line of the project does: run code from data, read a clock to decide, change the store beside the one
seam."""

from __future__ import annotations

from pathlib import Path

from tests.architecture.scan import ROOT, SHIPPED, banned, clocks, mutations, python_files, unencoded, where

STORE = ROOT / "spin_core" / "store"


def _hits(scanner, files: list[Path]) -> str:
    assert files
    return "\n".join(f"{where(file)}, {hit}" for file in files for hit in scanner(file.read_text(encoding="utf-8")))


def test_shipped_code_never_runs_code_from_data():
    """Catches a checkpoint, profile or cache entry that could run code where it is read (pickle, torch.load,
    yaml.load, remote code, shells)."""
    bad = _hits(banned, python_files(*SHIPPED))
    assert not bad, f"use safetensors, JSON, yaml.safe_load and argument lists instead:\n{bad}"


def test_store_decisions_read_no_clock():
    """Catches a key, a look-up or a clean-up whose answer depends on the time of day (promise 4 of the store)."""
    names = ("keys.py", "digest.py", "store.py", "verify.py", "explain.py", "code.py")
    bad = _hits(clocks, [STORE / name for name in names if (STORE / name).is_file()])
    assert not bad, f"no decision of the store may read a clock:\n{bad}"


def test_store_changes_files_only_in_fs():
    """Catches a write that the fault tests cannot reach, because it does not pass spin_core/store/fs.py."""
    bad = _hits(mutations, [file for file in python_files("spin_core/store") if file.name != "fs.py"])
    assert not bad, f"change files through spin_core.store.fs:\n{bad}"


def test_text_is_utf8_whatever_the_locale():
    """Catches a file, or another process's output, that is read as ASCII or Latin-1 on a machine with such a locale."""
    bad = _hits(unencoded, python_files(*SHIPPED))
    assert not bad, f'say encoding="utf-8":\n{bad}'
