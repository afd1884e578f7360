"""The code digest: blind to layout, awake to meaning, here and in what is called."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store import code
from spin_core.store.code import ROOT, code_digest, code_parts

STAGE = '''"""A stage."""
import os
from lab.maths import add
from lab import job, errors

VERSION = 1


def run(x):
    """Adds."""
    from .deep import halve
    return halve(add(x, 2))
'''
FILES = {
    "lab/__init__.py": "",
    "lab/stage.py": STAGE,
    "lab/maths.py": "import lab.more\n\ndef add(a, b):\n    return a + b\n",
    "lab/more.py": "C = 3\n",
    "lab/deep.py": "def halve(x):\n    return x / 2\n",
    "lab/job.py": "X = 1\n",
    "lab/errors.py": "X = 1\n",
    "lab/store/__init__.py": "X = 1\n",
    "lab/unused.py": "X = 1\n",
}


@pytest.fixture
def lab(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def edit(lab: Path, name: str, old: str, new: str) -> str:
    text = (lab / name).read_text(encoding="utf-8")
    assert old in text
    (lab / name).write_text(text.replace(old, new), encoding="utf-8")
    return code_digest("lab.stage", lab)


def test_code_digest_covers_what_the_stage_imports_also_in_functions(lab):
    """Catches missing callees (as Prefect's TASK_SOURCE does) and taking in how stages are run."""
    assert set(code_parts("lab.stage", lab)) == {"lab", "lab.stage", "lab.maths", "lab.more", "lab.deep"}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("lab/stage.py", "VERSION = 1", "VERSION   =  1   # the first"),
        ("lab/stage.py", '"""Adds."""', '"""Adds two\n\n    and halves."""'),
        ("lab/stage.py", '    """Adds."""\n', ""),
        ("lab/stage.py", '"""A stage."""', "# nothing"),
        ("lab/stage.py", "def run(x):", "def run(\n    x\n):"),
        ("lab/maths.py", "a + b", "(a + b)"),
        ("lab/job.py", "1", "2"),
        ("lab/errors.py", "1", "2"),
        ("lab/store/__init__.py", "1", "2"),
        ("lab/unused.py", "1", "2"),
    ],
)
def test_code_digest_edit_without_meaning_changes_nothing(lab, name, old, new):
    """Catches a digest of the bytes: a formatter would mark every output stale."""
    assert code_digest("lab.stage", lab) == edit(lab, name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("lab/stage.py", "add(x, 2)", "add(x, 3)"),
        ("lab/stage.py", "add(x, 2)", "add(2, x)"),
        ("lab/stage.py", "def run(x)", "def run(x=None)"),
        ("lab/maths.py", "a + b", "a - b"),
        ("lab/more.py", "C = 3", "C = 3.0"),
        ("lab/more.py", "C = 3", "C = None"),
        ("lab/more.py", "C = 3", "C = 'u3'"),
        ("lab/deep.py", "x / 2", "x // 2"),
    ],
)
def test_code_digest_edit_with_meaning_changes_it(lab, name, old, new):
    """Catches a digest that sees only the stage's own text."""
    assert code_digest("lab.stage", lab) != edit(lab, name, old, new)


def test_code_digest_covers_a_modules_templates_and_no_others(lab):
    """Catches a page whose template changed and whose output is called up to date."""
    for name in ("deep.page.j2", "deep.css", "unused.j2", "deep.txt"):
        (lab / "lab" / name).write_text("a", encoding="utf-8")
    assert {name for name in code_parts("lab.stage", lab) if "/" in name} == {"lab/deep.page.j2", "lab/deep.css"}
    first = code_digest("lab.stage", lab)
    assert first == edit(lab, "lab/unused.j2", "a", "b") != edit(lab, "lab/deep.page.j2", "a", "b")


def test_code_digest_reads_modules_without_running_them(lab):
    """Catches importing a stage (and torch with it) to hash it."""
    first = code_digest("lab.stage", lab)
    assert edit(lab, "lab/more.py", "C = 3", "raise SystemExit('imported')\nC = 3") != first


def test_code_digest_golden_is_the_same_on_every_python(lab):
    """Catches a dump that grows with Python's syntax tree (3.12 and 3.13 added empty fields)."""
    assert code_digest("lab.stage", lab) == "f3de171211bc8950770614a82e7afa22eb7e56c059e0e14f014f1bf779a0ebbb"


def test_code_digest_missing_or_broken_module_is_named(lab):
    """Catches a bare traceback, and a digest of nothing."""
    with pytest.raises(StoreError, match=r"lab\.nothing"):
        code_digest("lab.nothing", lab)
    with pytest.raises(StoreError, match=r"maths\.py"):
        edit(lab, "lab/maths.py", "return", "return return")


def test_code_digest_of_a_real_stage_is_one_in_every_process():
    """Catches addresses, hash order or the working directory in the digest."""
    code = "from spin_core.store.code import code_digest; print(code_digest('spin_core.stages.finetune'))"
    env = {"PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    out = subprocess.run([sys.executable, "-c", code], env=env, cwd="/", check=True, capture_output=True, text=True)
    assert out.stdout.strip() == code_digest("spin_core.stages.finetune")


def test_code_digest_is_the_same_when_python_confuses_two_threads(monkeypatch):
    """Catches a cached run that fails because another thread makes a syntax tree at the same moment (CPython before
    3.11.8: SystemError, once in ten runs on a work pool), and one that tries for ever."""
    digest = code_digest("spin_core.stages.gather")
    real, calls = ast.parse, []

    def confused(source):
        calls.append(source)
        if len(calls) % 2:
            raise SystemError("AST constructor recursion depth mismatch (before=54, after=75)")
        return real(source)

    monkeypatch.setattr(ast, "parse", confused)
    code._parsed.cache_clear()
    assert code_digest("spin_core.stages.gather") == digest and len(calls) > 2
    monkeypatch.setattr(ast, "parse", lambda source: confused(calls.clear()))
    code._parsed.cache_clear()
    with pytest.raises(SystemError):
        code_digest("spin_core.stages.gather")
