"""Ids that come with pairs are a stranger's: they are used where they are this run's and say what the texts say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spin_core.config.chat import ChatSection
from spin_core.config.gather import Gather
from spin_core.config.runtime import Runtime
from spin_core.data import token_file
from spin_core.data.rows import FILES, Row, write_rows
from spin_core.data.token_file import TokenFile
from spin_core.job import Job
from spin_core.modeling.loading import load_chat
from spin_core.stages import demo_model, gather, import_pairs, tokenize

CHAT = ChatSection(max_prompt_length=60)
COLUMNS = ("prompt", "real", "generated")


def job_at(folder: Path, notes: list[str]) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    runtime = Runtime(device="cpu", threads=1)
    return Job(folder, folder, runtime, send=lambda event: notes.append(event["note"]) if "note" in event else None)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, rows, their tokens and a pairs tree of gather."""
    root = tmp_path_factory.mktemp("made")
    model, rows, tokens, answers, pairs = (root / name for name in ("model", "rows", "tokens", "answers", "pairs"))
    demo_model.run({}, demo_model.Config(seed=5), job_at(model, []))
    rows.mkdir()
    chat, lines = load_chat(model, CHAT), []
    for split, name in FILES.items():
        some = [Row(f"{split}{i}", [{"role": "user", "content": f"Say {split} {i}"}], f"said {i}") for i in range(3)]
        write_rows(rows / name, some)
        for row in some:
            ids = [*chat.ids([f" so {row.id}"])[0], *chat.frame.end]
            lines.append({"id": row.id, "text": f"so {row.id}", "finish": "stop", "tokens": len(ids), "token_ids": ids})
    config = tokenize.Config(chat=CHAT, max_rejected=0.5, shard_rows=4)
    tokenize.run({"tokenizer": model, "rows": rows}, config, job_at(tokens, []))
    answers.mkdir()
    (answers / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    inputs = {"rows": rows, "tokens": tokens, "answers": [answers]}
    gather.run(inputs, gather.Config(gather=Gather()), job_at(pairs, []))
    return {"model": model, "rows": rows, "tokens": tokens, "pairs": pairs}


def rewritten(change: Callable[[str, dict[str, list[int]]], None]) -> Callable[[Path], None]:
    """Changes the ids of the train pairs."""

    def apply(tree: Path) -> None:
        path = tree / token_file.FILES["train"]
        file = TokenFile(path)
        rows = [(id, {name: ids.tolist() for name, ids in row.items()}) for id, row in zip(file.ids, file, strict=True)]
        for id, row in rows:
            change(id, row)
        token_file.write(path, COLUMNS, ((id, *(row[name] for name in COLUMNS)) for id, row in rows))

    return apply


def poison(id: str, row: dict[str, list[int]]) -> None:
    """Another answer of the same length under the text that people read."""
    if id == "train1":
        row["generated"][0:2] = row["generated"][1::-1]


def other_prompt(id: str, row: dict[str, list[int]]) -> None:
    row["prompt"] = row["prompt"][1:]


def beyond(id: str, row: dict[str, list[int]]) -> None:
    row["generated"][0] = 100_000


def negative(id: str, row: dict[str, list[int]]) -> None:
    row["generated"][0] = -5


def junk(tree: Path) -> None:
    (tree / "tokens.json").write_text('{"ids": "sampled", "train": {"rows": "<script>"}, "test": []}')


def lying(tree: Path) -> None:
    """Offsets of Arrow that point behind their buffer: of each list of three rows the last one."""
    path = tree / token_file.FILES["train"]
    data = path.read_bytes()
    lengths = TokenFile(path).lengths("generated")
    offsets = np.array([0, *np.cumsum(lengths)], np.int32)
    assert data.count(offsets.tobytes()) >= 1
    offsets[-1] = 1 << 28
    honest = np.array([0, *np.cumsum(lengths)], np.int32).tobytes()
    path.write_bytes(data.replace(honest, offsets.tobytes()))


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "as sampled": (lambda tree: None, ""),
    "other ids under the same text": (rewritten(poison), "pair train1 do not say what its text says"),
    "another template": (rewritten(other_prompt), "pair train0 has other ids under this run's tokenizer"),
    "an id beyond the tokenizer": (rewritten(beyond), "pair train0 do not say"),
    "an id below zero": (rewritten(negative), "pair train0 do not say"),
    "counts that are none": (junk, "tokens.json does not say"),
    "one file is missing": (lambda tree: (tree / token_file.FILES["test"]).unlink(), "there is no test_tokens.arrow"),
    "no Arrow file": (lambda tree: (tree / token_file.FILES["train"]).write_bytes(b"ARROW1"), "not a readable file"),
    "offsets that lie": (lying, "not a readable file of tokens"),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_of_a_stranger_are_used_only_where_they_are_what_they_say(made, tmp_path, name: str) -> None:
    """Catches training on ids that are not the text which a person reviewed, ids that no embedding has, a file whose
    offsets read foreign memory, and figures of a stranger in the report; and own pairs that lose their sampled ids."""
    change, why = CASES[name]
    source = Path(shutil.copytree(made["pairs"], tmp_path / "source"))
    change(source)
    notes: list[str] = []
    inputs = {"source": source, "rows": made["rows"], "tokens": made["tokens"], "tokenizer": made["model"]}
    import_pairs.run(inputs, import_pairs.Config(), job_at(tmp_path / "out", notes))
    kept = {path.name for path in (tmp_path / "out").iterdir()} & {*token_file.FILES.values(), "tokens.json"}
    assert len(kept) == (0 if why else 3)
    assert [why in note for note in notes] == ([True] if why else []), notes
    assert (tmp_path / "out" / FILES["train"]).read_bytes() == (made["pairs"] / FILES["train"]).read_bytes()
