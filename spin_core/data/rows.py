"""Rows and pairs: what they are, their ids, their shards, and their parquet files in the reference's record.

On disk `real` and `generated` are message lists, as the reference publishes them; in memory a row is prompt and answer.
Of a set with tools the messages have more fields, all text (`tools.BESIDE_CONTENT`): the functions are in the first.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

from spin_core.config.choices import Finish
from spin_core.data.table_file import column_names, leaf_names, read_batches, write_table
from spin_core.data.tools import BESIDE_CONTENT, CALLS, TOOLS
from spin_core.errors import BadInput

T = TypeVar("T")
Messages = list[dict[str, str]]
"""A conversation: `{"role": "system" | "user" | "assistant" | "tool", "content": text}` in order; of one with tools
turns also have fields of `tools.BESIDE_CONTENT`."""

TRAIN_FILE = "train_prefs-00000-of-00001.parquet"
TEST_FILE = "test_prefs-00000-of-00001.parquet"
FILES = {"train": TRAIN_FILE, "test": TEST_FILE}
PLAIN = ("role", "content")
WRITE_ROWS, WRITE_CHARACTERS = 1024, 4 << 20  # that are made into Arrow's form at once


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A row as found: file (relative to the source, empty for a single file), line or row number from 1, fields.

    `reject` says why it is no usable object; then it has no fields, and `detail` says what was seen.
    """

    file: str
    line: int
    fields: dict[str, Any]
    reject: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One SFT row: prompt messages (the last is the user's) and the real answer. `source`: which of several sets it is
    of, empty where there is one."""

    id: str
    prompt: Messages
    answer: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A row with the opponent's answer. `finish` is `stop`, or `length` where that answer was cut at max_new_tokens;
    `source` is the row's."""

    id: str
    prompt: Messages
    real: str
    generated: str
    finish: Finish
    source: str = ""


def prompt_id(prompt: Messages) -> str:
    """First 16 hex digits of sha256 over the prompt's canonical JSON: 2^-25 odds of a collision in a million rows."""
    text = json.dumps(prompt, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def beginning_id(prompt: Messages) -> str:
    """Id of the prompt that its conversation begins with, through the first user turn: what is held out goes by it, so
    that no conversation, and no prompt with several answers, is on both sides, whatever tools it has. Of a single turn
    without any it is `prompt_id`."""
    first = next((number for number, turn in enumerate(prompt) if turn["role"] == "user"), len(prompt) - 1)
    return prompt_id([{name: turn[name] for name in PLAIN} for turn in prompt[: first + 1]])


def answer_id(row: str, number: int) -> str:
    """Id of the pair with a row's n-th sampled answer (from 0): the first has the row's own."""
    return f"{row}#{number + 1}" if number else row


def parts_of(id: str) -> tuple[str, int]:
    """The row that a pair of `answer_id` is of, and the number of its answer."""
    row, mark, number = id.rpartition("#")
    return (row, int(number) - 1) if mark and row and number.isdecimal() and int(number) > 1 else (id, 0)


def row_of(id: str) -> str:
    """The row that a pair of `answer_id` is of."""
    return parts_of(id)[0]


def fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` alone: seeded draws compare it, so they are stable under growth."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


class ShardEntry(TypedDict):
    """One shard of prompts in shards.json: its file in the tree, the file's sha256, `train` or `test`, its rows."""

    file: str
    sha256: str
    split: str
    rows: int


class Cutter(Generic[T]):
    """Cuts items that come in the order of their ids into content-defined shards of aim/4 to 2·aim (the last may be
    shorter); no more than 2·aim items are held.

    A shard ends at the first id from its minimum on whose hash says so (one in 3/4·aim does), and where none does up to
    the maximum, at the id of smallest hash: an id that was added or removed moves only the ends near it. It changes one
    shard, seldom a second; of 26,400 single edits (aims 8 to 64, beside every id) none changed more than 4. That is
    chance, not proof: ids are hashes, and whoever chose them by hand could make every end move.
    Content-defined chunking with minimum and maximum, as in LBFS (Muthitacharoen et al. 2001), section 3.1.
    """

    def __init__(self, aim: int):
        self._least, self._most = max(1, aim // 4), 2 * aim
        self._threshold = 1 / max(1, aim - self._least)
        self._held: list[T] = []
        self._marks: list[float] = []

    def add(self, item: T, id: str) -> list[T]:
        """The shard that is now at its end; empty while none is."""
        self._held.append(item)
        self._marks.append(fraction("shard", id))
        return self._first() if len(self._held) == self._most else []

    def rest(self) -> Iterator[list[T]]:
        """The shards of what is held."""
        while self._held:
            yield self._first()

    def _first(self) -> list[T]:
        held, marks = self._held, self._marks
        window = range(self._least - 1, len(held))
        end = next((i for i in window if marks[i] < self._threshold), None)
        if end is None:
            end = min(window, key=marks.__getitem__) if len(held) == self._most else len(held) - 1
        shard = held[: end + 1]
        del held[: end + 1], marks[: end + 1]
        return shard


def write_rows(path: Path, rows: Iterable[Row], sources: bool = False, tools: bool = False) -> None:
    """Write `id, real, generated` with an empty generated answer, as the reference's reformat does; with `sources` also
    `source`, with `tools` messages with their fields.

    `rows` may be more than fit into memory (`spin_core/data/table_file.py`), here and in `write_pairs`.
    """
    records = (
        (r.id, _conversation(r.prompt, r.answer), _conversation(r.prompt, ""), *[r.source] * sources) for r in rows
    )
    _write(path, ("id", "real", "generated", *["source"] * sources), records, tools)


def write_pairs(path: Path, pairs: Iterable[Pair], sources: bool = False, tools: bool = False) -> None:
    """Write `id, real, generated, finish` (the reference's convert_data has real and generated), with `sources`
    `source`, and with `tools` messages with their fields."""
    records = (
        (p.id, _conversation(p.prompt, p.real), _conversation(p.prompt, p.generated), p.finish, *[p.source] * sources)
        for p in pairs
    )
    _write(path, ("id", "real", "generated", "finish", *["source"] * sources), records, tools)


def has_sources(path: Path) -> bool:
    """Whether the rows or pairs of a file say which set they are of."""
    return "source" in column_names(path)


def has_tools(path: Path) -> bool:
    """Whether messages of a file of rows or pairs have the fields of tools."""
    return any(name.startswith("real.") and name.endswith(f".{CALLS}") for name in leaf_names(path))


def of_tools(prompt: Messages) -> bool:
    """Whether a prompt has more than roles and texts."""
    return any(len(turn) > len(PLAIN) for turn in prompt)


def read_rows(path: Path) -> list[Row]:
    """The rows of one parquet file, ours or the reference's reformat's. Raises BadInput naming file and row."""
    return list(iter_rows(path))


def iter_rows(path: Path) -> Iterator[Row]:
    """As `read_rows`, one at a time."""
    return (Row(id, real[:-1], real[-1]["content"], source) for id, real, _, _, source in _read(path))


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of one parquet file, ours or a published SPIN_iter set. Raises BadInput naming file and row.

    Published sets have no `id` and no `finish`: ids are computed from the prompt (a prompt that comes again gets "-1",
    "-2" in file order), and every answer counts as finished. A million pairs of 1.1 kB take 1.7 GB.
    """
    return [
        Pair(id, real[:-1], real[-1]["content"], generated[-1]["content"], finish, source)
        for id, real, generated, finish, source in _read(path)
    ]


def iter_ids(path: Path) -> Iterator[str]:
    """The ids of `iter_rows`; where the file has them no row is read. Raises BadInput naming the file."""
    if _own_ids(path):
        return (id for batch in read_batches(path, ["id"]) for id in batch.column(0).to_pylist())
    return (row.id for row in iter_rows(path))


def _conversation(prompt: Messages, answer: str) -> Messages:
    return [*prompt, {"role": "assistant", "content": answer}]


def _write(path: Path, names: Sequence[str], records: Iterable[tuple[Any, ...]], tools: bool) -> None:
    import pyarrow as pa

    fields = (*PLAIN, *(BESIDE_CONTENT if tools else ()))
    messages = pa.list_(pa.struct([(name, pa.string()) for name in fields]))
    types = {"id": pa.string(), "real": messages, "generated": messages, "finish": pa.string(), "source": pa.string()}
    schema = pa.schema([(name, types[name]) for name in names])

    def batch(held: list[tuple[Any, ...]]) -> pa.RecordBatch:
        columns = [pa.array(column, field.type) for column, field in zip(zip(*held, strict=True), schema, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=schema)

    def batches() -> Iterator[pa.RecordBatch]:
        held, size = [], 0
        for record in records:
            held.append(record)
            size += sum(len(turn["content"]) for turn in (*record[1], record[2][-1]))
            if len(held) == WRITE_ROWS or size > WRITE_CHARACTERS:
                yield batch(held)
                held, size = [], 0
        if held:
            yield batch(held)

    write_table(path, schema, batches())


def _own_ids(path: Path) -> bool:
    """Whether every row has an id of its own: then nothing has to be kept of one while the others are read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if "id" not in column_names(path):
        return False
    columns = [batch.column(0) for batch in read_batches(path, ["id"])]
    ids = pa.chunked_array(columns, columns[0].type if columns else pa.string())
    if not pa.types.is_string(ids.type) or ids.null_count:
        return False
    return pc.count_distinct(ids).as_py() == len(ids) and not pc.any(pc.equal(ids, "")).as_py()


def _read(path: Path) -> Iterator[tuple[str, Messages, Messages, Any, str]]:
    columns = column_names(path)
    if not {"real", "generated"} <= set(columns):
        raise BadInput(f"{path}: needs the columns real and generated, and has {', '.join(columns)}.")
    own = _own_ids(path)
    seen: Counter[str] = Counter()
    number = 0
    for batch in read_batches(path, ("id", "real", "generated", "finish", "source")):
        for fields in batch.to_pylist():
            number += 1
            real, generated = (_turns(fields[name], name, path, number) for name in ("real", "generated"))
            finish = fields.get("finish") or "stop"
            id = fields.get("id") or prompt_id(real[:-1])
            if not own:
                seen[id] += 1
                if seen[id] > 1 and fields.get("id"):
                    raise BadInput(f"{path}, row {number}: the id {id} is there twice; make the file again.")
            if finish not in ("stop", "length"):
                raise BadInput(f"{path}, row {number}: finish is {finish!r}; it must be stop or length.")
            source = fields.get("source")
            named = source if isinstance(source, str) else ""
            yield f"{id}-{seen[id] - 1}" if seen[id] > 1 else id, real, generated, finish, named


def _turns(value: Any, name: str, path: Path, number: int) -> Messages:
    try:
        # One text for each role: a list of a million pairs would have four million of them, 50 bytes each.
        turns = [{"role": sys.intern(m["role"]), "content": m["content"]} for m in value]
        for turn, m in zip(turns, value, strict=True):
            if len(m) > len(PLAIN):
                own = BESIDE_CONTENT if m["role"] == "tool" else (TOOLS, CALLS)
                turn |= {name: m[name] for name in own if isinstance(m.get(name), str)}
    except (TypeError, KeyError):
        turns = []
    if len(turns) < 2 or turns[-1]["role"] != "assistant" or not all(isinstance(m["content"], str) for m in turns):
        raise BadInput(
            f"{path}, row {number}: {name} must be a list of role/content messages, the last one the assistant's, "
            "behind at least one other."
        )
    return turns
