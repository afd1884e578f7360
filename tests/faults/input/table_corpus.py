"""Malformed parquet files and saved data sets, and folders that no honest person has: what is made, what must come."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.input.text_corpus import Outcome, lines, rejected, row

ROWS = [row(i) for i in range(8)]
TABLE = pa.Table.from_pylist(ROWS)
PYARROW = int(pa.__version__.partition(".")[0])


def _with(**columns) -> Callable[[Path], None]:
    """The good rows with more columns, or with others in their place."""
    made = {name: TABLE[name] for name in TABLE.column_names} | columns
    return lambda path: pq.write_table(pa.table(made), path)


def _bytes(change: Callable[[bytearray], bytes | bytearray]) -> Callable[[Path], None]:
    """The good file, its bytes changed."""

    def make(path: Path) -> None:
        pq.write_table(TABLE, path)
        path.write_bytes(change(bytearray(path.read_bytes())))

    return make


def _not_utf8(path: Path) -> None:
    array = pa.array([b"\xff\xfe", *(f"q{i}".encode() for i in range(7))], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"prompt": array, "response": TABLE["response"]}), path)


def _same_names(path: Path) -> None:
    pq.write_table(pa.table([TABLE["prompt"], TABLE["response"]], names=["prompt", "prompt"]), path)


def _schema_only(path: Path) -> None:
    with pq.ParquetWriter(path, TABLE.schema):
        pass


def _no_rows(path: Path) -> None:
    pq.write_table(TABLE.slice(0, 0), path)


def _columns(count: int) -> Callable[[Path], None]:
    return _with(**{f"c{i}": pa.array([i] * 8) for i in range(count)})


def _deep(depth: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        kind, value = pa.string(), "x"
        for _ in range(depth):
            kind, value = pa.list_(kind), [value]
        pq.write_table(pa.table({"prompt": TABLE["prompt"], "response": pa.array([value] * 8, kind)}), path)

    return make


def _lie(data: bytearray) -> bytearray:
    """The footer's number of rows, 8, is given as 60 (one byte, zigzag) wherever a varint of 8 stands."""
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = data[-8 - length : -8].replace(b"\x16\x10", b"\x16\x78")
    return data[: -8 - length] + footer + data[-8:]


def _repeated(path: Path) -> None:
    """Two kilobytes that are two gigabytes: one text, two thousand times."""
    big = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"prompt": big}), path, compression="zstd", store_schema=False)


def _one_cell(path: Path) -> None:
    cell = pa.array(["x" * (360 << 20)])
    pq.write_table(pa.table({"prompt": cell}), path, compression="zstd", use_dictionary=False, write_statistics=False)


def _nothings(path: Path) -> None:
    """Rows that take no byte at all."""
    with pq.ParquetWriter(path, pa.schema([("prompt", pa.null())])) as out:
        for _ in range(24):
            out.write_batch(pa.record_batch({"prompt": pa.nulls(50_000)}))


def _repeated_in_a_row(path: Path) -> None:
    """One row that is three gigabytes: one text of a mebibyte, named three thousand times in its list."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int16()), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"prompt": pa.ListArray.from_arrays([0, 3000], texts)}), path, compression="zstd")


def _coded_talks(path: Path) -> None:
    """Chats whose roles are numbers into a dictionary, as pandas' categories are."""
    roles = pa.array(["user", "assistant"] * 8).dictionary_encode()
    texts = pa.array([text for one in ROWS for text in one.values()])
    turns = pa.StructArray.from_arrays([roles, texts], ["role", "content"])
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays(list(range(0, 17, 2)), turns)}), path)


TIMES = [datetime.datetime(2026, 1, 1)] * 8
UNREADABLE = "not a readable parquet file"
PARQUET: dict[str, tuple[Callable[[Path], None], Outcome]] = {
    "good": (lambda path: pq.write_table(TABLE, path), Outcome()),
    "empty file": (lambda path: path.write_bytes(b""), Outcome(UNREADABLE)),
    "text": (lambda path: path.write_bytes(lines()), Outcome(UNREADABLE)),
    "magic only": (lambda path: path.write_bytes(b"PAR1"), Outcome(UNREADABLE)),
    "magic twice": (lambda path: path.write_bytes(b"PAR1" + b"\0" * 4 + b"PAR1"), Outcome(UNREADABLE)),
    "encrypted footer": (_bytes(lambda data: b"PARE" + data[4:-4] + b"PARE"), Outcome("encrypted")),
    "cut footer": (_bytes(lambda data: data[:-20]), Outcome(UNREADABLE)),
    "cut in the middle": (_bytes(lambda data: data[: len(data) // 2]), Outcome(UNREADABLE)),
    "footer of 4 GB": (_bytes(lambda data: data[:-8] + b"\xff\xff\xff\xff" + data[-4:]), Outcome(UNREADABLE)),
    "footer of zeros": (_bytes(lambda data: data[:-60] + bytes(52) + data[-8:]), Outcome(UNREADABLE)),
    "pages of noise": (_bytes(lambda data: data[:10] + os.urandom(40) + data[50:]), Outcome("after row 0|parquet")),
    "footer that lies of rows": (_bytes(_lie), Outcome(UNREADABLE)),
    "0 row groups": (_schema_only, Outcome("no rows")),
    "0 rows": (_no_rows, Outcome("no rows")),
    "other columns": (lambda path: pq.write_table(pa.table({"text": ["a"]}), path), Outcome("its columns are text")),
    "two columns of one name": (_same_names, Outcome("two columns have the same name")),
    "numbers for text": (_with(response=pa.array(range(8))), Outcome()),
    "fractions for text": (_with(response=pa.array([1e300] * 8)), Outcome("wrong type: 8")),
    "decimal for text": (_with(response=pa.array([decimal.Decimal("1.5")] * 8)), Outcome("wrong type: 8")),
    "time for text": (_with(response=pa.array(TIMES)), Outcome("wrong type: 8")),
    "day for text": (_with(response=pa.array([1] * 8, pa.date32())), Outcome("wrong type: 8")),
    "second for text": (_with(response=pa.array([1] * 8, pa.timestamp("s")).dictionary_encode()),
                        Outcome("wrong type: 8")),
    "bytes for text": (_with(response=pa.array([b"a"] * 8)), Outcome("wrong type: 8")),
    "objects for text": (_with(response=pa.array([{"a": 1}] * 8)), Outcome("wrong type: 8")),
    "map for text": (_with(response=pa.array([[("a", 1)]] * 8, pa.map_(pa.string(), pa.int64()))),
                     Outcome("wrong type: 8")),
    "nulls for text": (_with(response=pa.nulls(8)), Outcome("no answer: 8")),
    "lists 30 deep": (_deep(30), Outcome("wrong type: 8")),
    "lists 60 deep": (_deep(60), Outcome("too deeply nested" if PYARROW > 25 else "wrong type: 8")),  # 26 reads none
    "one text is not UTF-8": (_not_utf8, rejected("malformed object", 1, rows=7)),
    "dictionary": (_with(response=TABLE["response"].combine_chunks().dictionary_encode()), Outcome()),
    "large strings": (_with(response=TABLE["response"].cast(pa.large_string())), Outcome()),
    "string views": (_with(response=TABLE["response"].cast(pa.string_view())), Outcome()),
    "a time beside": (_with(when=pa.array(TIMES)), Outcome()),
    "a time of the year 300,000 beside": (_with(when=pa.array([9_400_000_000_000] * 8, pa.timestamp("s"))), Outcome()),
    "a time of a nanosecond beside": (_with(when=pa.array([1] * 8, pa.timestamp("ns", "UTC"))), Outcome()),
    "a decimal beside": (_with(cost=pa.array([decimal.Decimal("1.5")] * 8)), Outcome()),
    "bytes beside": (_with(raw=pa.array([b"\xff"] * 8)), Outcome()),
    "NaN beside": (_with(score=pa.array([float("nan")] * 8)), Outcome()),
    "a thousand columns beside": (_columns(1000), Outcome()),
    "row over 16 MiB": (
        lambda path: pq.write_table(pa.table({"prompt": ["x" * (17 << 20)], "response": ["a"]}), path),
        Outcome("a row may have 16"),
    ),
    "bomb of one text": (_repeated, Outcome("made to fill memory")),
    "bomb of one cell": (_one_cell, Outcome("MiB")),
    "bomb of nothings": (_nothings, Outcome("made to fill memory")),
    "bomb of one text in a row": (_repeated_in_a_row, Outcome("MiB of memory|a row may have")),
    "dictionary in a chat": (_coded_talks, Outcome()),
}  # fmt: skip


def saved(folder: Path) -> Path:
    """What save_to_disk writes, a folder of one split."""
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder))
    return folder


def saved_as(make: Callable[[], pa.Table]) -> Callable[[Path], None]:
    """A folder of save_to_disk whose file holds any table."""

    def write(folder: Path) -> None:
        folder.mkdir()
        table = make()
        with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as out:
            out.write_table(table)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))

    return write


def _nulls_in_a_row() -> pa.Table:
    return pa.table({"prompt": pa.ListArray.from_arrays([0, 100_000_000], pa.nulls(100_000_000))})


def _texts_in_a_row() -> pa.Table:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int16()), pa.array(["x" * (1 << 20)]))
    return pa.table({"prompt": pa.ListArray.from_arrays([0, 3000], texts)})


def _views_of_one_list() -> pa.Table:
    """Twenty rows, each the same list of a million."""
    lists = pa.ListViewArray.from_arrays([0] * 20, [1_000_000] * 20, pa.nulls(1_000_000))
    return pa.table({"prompt": lists})


def _views_of_one_text() -> pa.Table:
    view = struct.pack("<i4sii", 1 << 20, b"xxxx", 0, 0)
    held = [None, pa.py_buffer(view * 3000), pa.py_buffer(b"x" * (1 << 20))]
    texts = pa.Array.from_buffers(pa.string_view(), 3000, held)
    return pa.table({"prompt": pa.ListArray.from_arrays([0, 3000], texts)})


def _lists_that_go_back() -> pa.Table:
    """Ends of lists before their beginnings: each second one is a million long again."""
    ends = pa.array([0, 1_000_000] * 15, pa.int32())
    return pa.table({"prompt": pa.ListArray.from_buffers(
        pa.list_(pa.null()), 29, [None, ends.buffers()[1]], children=[pa.nulls(1_000_000)])})  # fmt: skip


def _long_shard(folder: Path) -> None:
    """A good set whose file is longer than the decoder's memory, as long shards are."""
    with next(saved(folder).glob("*.arrow")).open("r+b") as file:
        file.truncate(720 << 20)


# name → folder of save_to_disk, what the sentence has
SAVED_BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "saved list of nulls": (saved_as(_nulls_in_a_row), "a row may have"),
    "saved list of one text": (saved_as(_texts_in_a_row), "MiB"),
    "saved views of one list": (saved_as(_views_of_one_list), "is not read"),
    "saved views of one text": (saved_as(_views_of_one_text), "MiB"),
    "saved lists that go back": (saved_as(_lists_that_go_back), "ends before it begins"),
}


def _state(change: Callable[[dict], object]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        state = json.loads((saved(folder) / "state.json").read_text())
        change(state)
        (folder / "state.json").write_text(json.dumps(state))

    return make


def _arrow(change: Callable[[bytearray], bytes | bytearray]) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        file = next(saved(folder).glob("*.arrow"))
        file.write_bytes(change(bytearray(file.read_bytes())))

    return make


def _file(name: str, data: bytes = b"") -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_bytes(data or lines())

    return make


def _beside(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """A folder with good rows, and something beside them."""

    def both(folder: Path) -> None:
        _file("train.jsonl")(folder)
        make(folder)

    return both


def _escape(folder: Path) -> None:
    (folder.parent / "secret.arrow").write_bytes(next(saved(folder).glob("*.arrow")).read_bytes())
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": "../secret.arrow"}]
    (folder / "state.json").write_text(json.dumps(state))


FOLDERS: dict[str, tuple[Callable[[Path], object], Outcome]] = {
    "saved": (saved, Outcome()),
    "saved, a file of 720 MB": (_long_shard, Outcome()),
    "saved, state is no JSON": (_state(lambda s: s), Outcome()),
    "saved, state names no files": (_state(lambda s: s.pop("_data_files")), Outcome("_data_files")),
    "saved, state names a path": (_escape, Outcome("_data_files")),
    "saved, state is of another form": (_state(lambda s: s.update(_data_files={"a": 1})), Outcome("_data_files")),
    "saved, file missing": (_state(lambda s: s.update(_data_files=[{"filename": "x.arrow"}])), Outcome("no such file")),
    "saved, file cut": (_arrow(lambda data: data[: len(data) // 2]), Outcome("not a readable arrow file")),
    "saved, file empty": (_arrow(lambda data: b""), Outcome("not a readable arrow file")),
    "saved, file of noise": (_arrow(lambda data: os.urandom(len(data))), Outcome("not a readable arrow file")),
    "script and no data": (_file("data.py", b"open('marker', 'w')"), Outcome("no .jsonl, .json, .parquet")),
    "script beside the data": (_beside(lambda f: (f / "train.py").write_text("open('marker', 'w')")), Outcome()),
    "not compressed": (_file("train.jsonl.gz"), Outcome("cannot be unpacked as gzip")),
    "not a csv file": (_file("train.csv"), Outcome("wrong columns: 7")),
    "copy kept by an editor": (_file("train.jsonl.bak"), Outcome("cannot read a .bak file")),
    "empty folder": (lambda f: f.mkdir(), Outcome("no .jsonl, .json, .parquet")),
    "hidden file": (_file(".train.jsonl"), Outcome("no .jsonl, .json, .parquet")),
    "folder named as a file": (_beside(lambda f: (f / "more.jsonl").mkdir()), Outcome()),
    "pipe as data": (_beside(lambda f: os.mkfifo(f / "train-1.jsonl")), Outcome("no regular file")),
    "pipe alone": (lambda f: (f.mkdir(), os.mkfifo(f / "train.jsonl")), Outcome("no regular file")),
    "path is a pipe": (lambda f: os.mkfifo(f), Outcome("neither a file nor a folder")),
    "path is a device": (lambda f: f.symlink_to("/dev/zero"), Outcome("neither a file nor a folder")),
    "link that leads nowhere": (lambda f: (f.mkdir(), (f / "a.jsonl").symlink_to("nowhere")), Outcome("no regular")),
    "link to itself": (lambda f: (f.mkdir(), (f / "train.jsonl").symlink_to("train.jsonl")), Outcome("no regular")),
    "stray link beside": (_beside(lambda f: (f / "notes.txt").symlink_to("nowhere")), Outcome()),
    "link to the folder itself": (_beside(lambda f: (f / "again").symlink_to(f)), Outcome()),
    "link to data elsewhere": (
        lambda f: (f.mkdir(), (f.parent / "real.jsonl").write_bytes(lines()),
                   (f / "train.jsonl").symlink_to(f.parent / "real.jsonl")), Outcome(),
    ),
    "name with a line end": (_file("a\n\x1b[31m.jsonl"), Outcome()),
    "name that is not UTF-8": (_file(os.fsdecode(b"a-\xff.jsonl")), Outcome("name is not UTF-8")),
    "name of 250 characters": (_file("t" * 244 + ".jsonl"), Outcome()),
    "upper-case ending": (_file("TRAIN.JSONL"), Outcome()),
    "good and broken file": (_beside(lambda f: (f / "train-2.jsonl").write_bytes(b"{")), Outcome("broken JSON")),
    "other split only": (_file("validation.jsonl"), Outcome("no file is named for the split 'train'")),
}  # fmt: skip
