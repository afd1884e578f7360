"""The folder of a reader who follows a page: data, a model, the pages' own profiles, and a store with a run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.architecture.scan import ROOT
from tests.docs import blocks
from tests.docs.profiles import name_of

WORDS = ("red", "blue", "green", "old", "new", "large", "small", "warm")


def rows(count: int) -> list[dict[str, str]]:
    """As many questions, each with one answer, under the names that the pages' examples have for columns."""
    made = []
    for n in range(count):
        asked, said = f"{WORDS[n % 8]} {WORDS[n // 8 % 8]}, {n}?", f"It is {WORDS[-1 - n % 8]}."
        made.append({"question": asked, "answer": said, "reply": said})
    return made


@pytest.fixture
def reader(tmp_path, model, finished, monkeypatch) -> Callable[[str], Path]:
    """`reader(page)`: an empty folder in which the page's profiles lie beside what they name, as the current one, with
    $SPINLOOP_STORE a copy of the finished store."""

    def stand(page: str) -> Path:
        shutil.copytree(finished[0], tmp_path / "store", symlinks=True)
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(40)), encoding="utf-8")
        shutil.copytree(model, folder / "org" / "my-sft-model")
        shutil.copytree(ROOT / "docs" / "examples", folder / "docs" / "examples")
        for block in blocks.of("yaml"):
            name = name_of(block)
            if name and (block.page == page or not (folder / name).exists()):
                (folder / name).write_text(block.text + "\n", encoding="utf-8")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("SPINLOOP_STORE", str(tmp_path / "store"))
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        return folder

    return stand
