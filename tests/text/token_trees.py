"""Tokens trees, made by the real stage with the golden tokenizer."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spin_core.config.chat import ChatSection
from spin_core.job import Job
from spin_core.stages import tokenize

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def write_tokenizer(folder: Path) -> Path:
    """The golden tokenizer in an empty folder, as a model's."""
    for file in (GOLDEN / "config.json", *(GOLDEN / "tokenizer").glob("*.json")):
        shutil.copyfile(file, folder / file.name)
    return folder


@cache
def _tokenizer() -> TemporaryDirectory[str]:
    """There while this process lives."""
    folder = TemporaryDirectory(prefix="spinloop-tokenizer-")
    write_tokenizer(Path(folder.name))
    return folder


def tokens_of(rows: Path, out: Path, shard_rows: int = 8, **chat: Any) -> dict[str, Any]:
    """Write the tokens of a rows tree into `out`, a new folder; give the stage's counts."""
    out.mkdir()
    config = tokenize.Config(chat=ChatSection(**chat), max_rejected=0.5, shard_rows=shard_rows)
    return tokenize.run({"tokenizer": Path(_tokenizer().name), "rows": rows}, config, Job(out, out))
