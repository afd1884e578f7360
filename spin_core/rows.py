"""Rows and pairs: what they are, their ids, and their parquet files in the reference's record.

On disk `real` and `generated` are message lists, as the reference publishes them; in memory a row is prompt and answer.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from spin_core.chat import Messages
from spin_core.errors import BadInput

TRAIN_FILE = "train_prefs-00000-of-00001.parquet"
TEST_FILE = "test_prefs-00000-of-00001.parquet"
FILES = {"train": TRAIN_FILE, "test": TEST_FILE}


@dataclass(frozen=True, slots=True)
class Row:
    """One SFT row: prompt messages (the last is the user's) and the real answer."""

    id: str
    prompt: Messages
    answer: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A row with the opponent's answer. `finish` is `stop`, or `length` where that answer was cut at max_new_tokens."""

    id: str
    prompt: Messages
    real: str
    generated: str
    finish: Literal["stop", "length"]


def prompt_id(prompt: Messages) -> str:
    """First 16 hex digits of sha256 over the prompt's canonical JSON: 2^-25 odds of a collision in a million rows."""
    turns = [{"content": m["content"], "role": m["role"]} for m in prompt]
    text = json.dumps(turns, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` alone: seeded draws compare it, so they are stable under growth."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `id, real, generated` with an empty generated answer, as the reference's reformat does."""
    rows = list(rows)
    _write(
        path,
        id=[r.id for r in rows],
        real=[_conversation(r.prompt, r.answer) for r in rows],
        generated=[_conversation(r.prompt, "") for r in rows],
    )


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write `id, real, generated, finish` (the reference's convert_data has real and generated)."""
    pairs = list(pairs)
    _write(
        path,
        id=[p.id for p in pairs],
        real=[_conversation(p.prompt, p.real) for p in pairs],
        generated=[_conversation(p.prompt, p.generated) for p in pairs],
        finish=[p.finish for p in pairs],
    )


def read_rows(path: Path) -> list[Row]:
    """The rows of one parquet file, ours or the reference's reformat's. Raises BadInput naming file and row."""
    return [Row(id, real[:-1], real[-1]["content"]) for id, real, _, _ in _read(path)]


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of one parquet file, ours or a published SPIN_iter set. Raises BadInput naming file and row.

    Published sets have no `id` and no `finish`: ids are computed from the prompt (a prompt that comes again gets "-1",
    "-2" in file order), and every answer counts as finished.
    """
    return [
        Pair(id, real[:-1], real[-1]["content"], generated[-1]["content"], finish)
        for id, real, generated, finish in _read(path)
    ]


def _conversation(prompt: Messages, answer: str) -> Messages:
    return [*prompt, {"role": "assistant", "content": answer}]


def _write(path: Path, **columns: Sequence[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    types = {"id": pa.string(), "real": messages, "generated": messages, "finish": pa.string()}
    schema = pa.schema([(name, types[name]) for name in columns])
    pq.write_table(pa.table(dict(columns), schema=schema), path)


def _read(path: Path) -> list[tuple[str, Messages, Messages, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}: not a readable parquet file ({said}); make it again.") from error
    if not {"real", "generated"} <= set(table.column_names):
        raise BadInput(f"{path}: needs the columns real and generated, and has {', '.join(table.column_names)}.")
    seen: Counter[str] = Counter()
    records = []
    for number, fields in enumerate(table.to_pylist(), 1):
        real, generated = (_turns(fields[name], name, path, number) for name in ("real", "generated"))
        id = fields.get("id") or prompt_id(real[:-1])
        seen[id] += 1
        if seen[id] > 1 and fields.get("id"):
            raise BadInput(f"{path}, row {number}: the id {id} is there twice; make the file again.")
        finish = fields.get("finish") or "stop"
        if finish not in ("stop", "length"):
            raise BadInput(f"{path}, row {number}: finish is {finish!r}; it must be stop or length.")
        records.append((f"{id}-{seen[id] - 1}" if seen[id] > 1 else id, real, generated, finish))
    return records


def _turns(value: Any, name: str, path: Path, number: int) -> Messages:
    try:
        turns = [{"role": str(m["role"]), "content": m["content"]} for m in value]
    except (TypeError, KeyError):
        turns = []
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or not all(isinstance(m["content"], str) for m in turns):
        raise BadInput(
            f"{path}, row {number}: {name} must be a list of role/content messages, the last one the assistant's, "
            "behind at least one other."
        )
    return turns
