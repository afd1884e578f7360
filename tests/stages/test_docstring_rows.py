"""docstring_rows: sentences of this Python's standard library, by content. On a small library in its place, as the real
one takes seconds to parse."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from spin_core.errors import BadInput, StageFailed
from spin_core.job import Job
from spin_core.stages import docstring_rows
from spin_core.store.keys import key_of
from tasks.docstring_rows import docstring_rows as task

LETTERS = "abcdefghij"
NUMBERED = [f"{a}{b}{c}" for a in LETTERS for b in LETTERS for c in LETTERS]
HEAP = "\n\n".join(f"Word {name} begins a sentence of this library." for name in NUMBERED)
FILES = {
    "heapq.py": f'"""{HEAP}"""\nraise SystemExit("it was imported")\n',
    "json/__init__.py": 'class A:\n    """The `first` line is\n    a sentence of seven words and more. Of 3 none."""\n',
    "json/tool.py": 'async def f():\n    "Return a copy of the \\"list\\" that was given."\n',
    "json/tests/test_json.py": '"""A sentence of a test is read by nobody."""\n',
    "abc.py": "def broken(:\n",
    "site-packages/numpy.py": '"""What is installed beside the library is not of it."""\n',
    "mine.py": '"""What lies in its folder is not of it either."""\n',
}
FOUND = [("return a copy", "of the list that was given."), ("the first line", "is a sentence of seven words and more.")]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A small standard library in the place of Python's own."""

    def made(name: str = "lib", **changed: str) -> Path:
        for file, text in {**FILES, **changed}.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(sysconfig, "get_path", lambda which: str(tmp_path / name))
        return tmp_path / name

    return made


def digest() -> str:
    return docstring_rows.digest_of(docstring_rows.library_files())


def test_rows_are_the_sentences_of_the_library(library, tmp_path) -> None:
    """Catches a library that is imported, rows of its tests or of packages beside it, a sentence that is cut where a
    line ends or has other characters than letters, one that is there twice, and a file that ends the run."""
    library()
    summary = docstring_rows.run({}, docstring_rows.Config(library=digest()), Job(tmp_path, tmp_path))
    rows = [tuple(json.loads(line).values()) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == sorted({*FOUND, *((f"word {name} begins", "a sentence of this library.") for name in NUMBERED)})
    assert summary == {"rows": len(rows), "files": 4, "unparsed": 1}


def test_key_is_of_what_is_read(library) -> None:
    """Catches a step that another Python's text does not compute again, and one whose key has a path in it."""

    def key() -> str:
        step, inputs = task.__wrapped__(None)
        return key_of(step.payload(inputs))

    library()
    first = key()
    library("elsewhere")
    assert key() == first
    library("newer", **{"json/tool.py": 'def f():\n    "Return another copy of the list that was given."\n'})
    assert key() != first


def test_library_that_is_another_or_has_no_text_is_one_sentence(library, tmp_path) -> None:
    """Catches rows under the key of other text, where Python is upgraded meanwhile, and a model of ten sentences."""
    root, job = library(), Job(tmp_path, tmp_path)
    before = digest()
    (root / "heapq.py").write_text("")
    with pytest.raises(StageFailed, match=r"lib: the standard library is not the one that this run began with"):
        docstring_rows.run({}, docstring_rows.Config(library=before), job)
    with pytest.raises(BadInput, match=r"only 2 sentences .* dataset\.path"):
        docstring_rows.run({}, docstring_rows.Config(library=digest()), job)
