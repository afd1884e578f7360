"""Conversations of a letter a turn, and what reformat makes of them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from spin_core.config.dataset import Dataset
from spin_core.data.rows import FILES, Row, read_rows
from spin_core.job import Job
from spin_core.stages import reformat


def conversation(turns: list[str], system: str = "") -> dict[str, Any]:
    """User and assistant in turn, of a text each."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
    return {"messages": [{"role": "system", "content": system}] * bool(system) + messages}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def reformatted(folder: Path, inputs: dict[str, list[dict]], **dataset: Any) -> tuple[Path, dict, list[str]]:
    """The rows tree, the summary, and what was noted."""
    out = Path(tempfile.mkdtemp(dir=folder))
    paths = {name: write(out / f"{name}.jsonl", rows) for name, rows in inputs.items()}
    (out / "tree").mkdir()
    config, notes = reformat.Config(dataset=Dataset(**dataset), seed=3), []
    job = Job(out / "tree", out / "scratch", send=lambda message: notes.append(message.get("note")))
    summary = reformat.run(paths, config, job)
    return out / "tree", summary, [note for note in notes if note]


def split(folder: Path, inputs: dict[str, list[dict]], **dataset: Any) -> tuple[dict[str, list[Row]], dict]:
    """Rows by side, and the summary."""
    tree, summary, _ = reformatted(folder, inputs, **dataset)
    return {side: read_rows(tree / name) for side, name in FILES.items()}, summary


def begins(row: Any) -> tuple[str, ...]:
    """The texts of a row's prompt through its first user turn, by hand."""
    roles = [turn["role"] for turn in row.prompt]
    return tuple(turn["content"] for turn in row.prompt[: roles.index("user") + 1])


TEXTS = st.sampled_from("abcdefgh")
CONVERSATIONS = st.lists(
    st.builds(
        lambda turns, system: conversation(turns[: len(turns) // 2 * 2], system),
        st.lists(TEXTS, min_size=2, max_size=6),
        st.sampled_from(("", "", "s")),
    ),
    min_size=1,
    max_size=25,
)
