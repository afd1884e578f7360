"""Malformed data sets (R25, R26, S8): each is refused in a sentence with its place, or its rows are rejected and
counted, or it is read; in bounded memory."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.data.readers import read
from tests.faults.fault import LEVEL, Fault
from tests.faults.input.measured import read_measured
from tests.faults.input.table_corpus import FOLDERS, PARQUET, PYARROW, SAVED_BOMBS, saved_as
from tests.faults.input.text_corpus import TEXT, Outcome, lines, pair
from tests.faults.input.through import check, prepare

SMALL = {name: PARQUET[name][0] for name in PARQUET if name.startswith("bomb")}
R25 = Fault("R25", f"{len(TEXT)} malformed JSON files: broken, not UTF-8, deep, huge, odd characters, wrong types")
R25_FOLDERS = Fault("R25", "folders with links, pipes, scripts, odd names; damaged sets of save_to_disk")
R26 = Fault("R26", "parquet: damaged, lying or encrypted footer, no rows, wrong and unreadable types")
S8 = Fault("S8", "parquet, JSON and gzip bombs, and 10 MB rows: the memory that reading takes, below 1 GB")


def test_malformed_text_is_refused_or_rejected_by_row(tmp_path, monkeypatch):
    """Catches a traceback, a row that is lost without a count, a line number that is wrong, and a pickle that ran."""
    monkeypatch.chdir(tmp_path)

    def trial(name: str) -> None:
        data, wanted = TEXT[name]
        file = tmp_path / name
        file.write_bytes(data)
        check(prepare(file), wanted, name)
        file.unlink()

    R25.each(TEXT, trial)
    assert not (tmp_path / "unpickled-marker").exists()


def test_malformed_tables_are_refused_or_rejected_by_row(tmp_path):
    """Catches a crash of the decoder that ends the stage, and one unreadable cell that spoils an entire data set."""

    def trial(name: str) -> None:
        make, wanted = PARQUET[name]
        file = tmp_path / f"{name}.parquet"
        make(file)
        check(prepare(file), wanted, file.name)

    # The bombs are read in test_bombs_stay_within_memory; to make them takes longer than to read them.
    R26.each([name for name in PARQUET if LEVEL != "pr" or name not in SMALL], trial)


def test_odd_folders_are_read_or_refused(tmp_path, monkeypatch):
    """Catches a pipe that is waited for, a link that is no file taken for rows, a file outside of a saved set that is
    read, a script that runs."""
    monkeypatch.chdir(tmp_path)

    def trial(name: str) -> None:
        make, wanted = FOLDERS[name]
        place = tmp_path / name.replace(" ", "-").replace(",", "")
        make(place)
        check(prepare(place), wanted, place.resolve().name)

    R25_FOLDERS.each(FOLDERS, trial)
    assert not list(tmp_path.rglob("marker"))


def test_unreadable_file_is_named(tmp_path):
    """Catches a permission that comes up as a traceback, or a file that is silently left out."""
    file = tmp_path / "train.jsonl"
    file.write_bytes(lines())
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read every file (root)")
    assert "train.jsonl" in prepare(file).refused


def _rows(path: Path) -> None:
    with path.open("wb") as file:
        for number in range(20):
            file.write(pair(f"q{number}", "é" * 5_000_000) + b"\n")


def _empty_lists(path: Path) -> None:
    """What grows most from text to objects: two characters that become 64 bytes."""
    path.write_bytes(b'{"a":[' + b"[]," * (5 << 20) + b"[]]}")


def _endless(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"[")
        file.truncate(8 << 30)


def _packed(compression: str, head: bytes, filling: bytes, count: int) -> Callable[[Path], None]:
    """Kilobytes that unpack to megabytes: `filling` so many times, behind `head`."""

    def make(path: Path) -> None:
        with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), compression) as out:
            out.write(head)
            for _ in range(count >> 20):
                out.write(filling * (1 << 20))

    return make


BOMBS = {f"{name}.parquet": make for name, make in SMALL.items()} | {
    "20 rows of 10 MB.jsonl": _rows,
    "five million lists.jsonl": _empty_lists,
    "8 GB of nothing.json": _endless,
    **{name: make for name, (make, _) in SAVED_BOMBS.items()},
    "one cell.csv.zst": _packed("zstd", b"prompt,response\n", b"a", 1 << 30),
    "one line.txt.gz": _packed("gzip", b"", b"a", 96 << 20),
    "one object.jsonl.gz": _packed("gzip", b'{"a": "', b"a", 96 << 20),
    "no rows.jsonl.zst": _packed("zstd", b"{}\n", b"\n", 2 << 20),
    "no array.json.bz2": _packed("bz2", b"[", b"\n ", 2 << 20),
    "gzip ×1000.json": lambda path: path.write_bytes(TEXT["gzip bomb.json"][0]),
}


def test_bombs_stay_within_memory(tmp_path):
    """Catches a reader that decodes first and looks at the size then, and one that reads an entire file at once."""

    def trial(name: str) -> None:
        BOMBS[name](tmp_path / name)
        rows, here, child, text = read_measured(tmp_path / name)
        assert here < 700 and child < 800 and here + child < 1024, f"{here} and {child} MiB"
        assert rows == 20 if name.startswith("20") else rows == 1 if name.startswith("five") else name in text, text
        if name.endswith("parquet"):
            check(Outcome(text), PARQUET[name.removesuffix(".parquet")][1], name)
        elif name in SAVED_BOMBS:
            check(Outcome(text), Outcome(SAVED_BOMBS[name][1]), name)

    S8.each(BOMBS, trial)


def test_rows_that_repeat_are_no_bomb(tmp_path):
    """Catches an honest set refused because its texts are short and few (labels, yes or no): a kilobyte is 80,000."""
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["Yes or no?"] * 80_000, "response": ["yes"] * 80_000}), file)
    assert file.stat().st_size < 10_000
    assert sum(1 for _ in read(file)) == 80_000


def test_nested_values_come_as_they_were_written(tmp_path):
    """Catches a decoder that moves values between rows when it makes lists, objects and maps anew, or drops a null."""
    numbers = random.Random(7)

    def some(make, most: int = 4):
        return None if numbers.random() < 0.2 else [make() for _ in range(numbers.randrange(most))]

    def text() -> str | None:
        return numbers.choice(["", "é", "a" * 50, None])

    def turn() -> dict | None:
        return numbers.choice([None, {"role": text(), "parts": some(lambda: {"text": text(), "n": some(int)})}])

    kinds = {
        "talk": pa.list_(
            pa.struct([("role", pa.string()),
                       ("parts", pa.list_(pa.struct([("text", pa.large_string()), ("n", pa.list_(pa.int8()))])))])
        ),
        "map": pa.map_(pa.string(), pa.list_(pa.string())),
        "pair": pa.list_(pa.bool_(), 2),
        "large": pa.large_list(pa.list_(pa.binary())),
        "nothing": pa.list_(pa.null()),
    }  # fmt: skip
    rows = [
        {
            "talk": some(turn),
            "map": None if i % 5 == 0 else [(f"k{j}", some(text)) for j in range(i % 3)],
            "pair": None if i % 7 == 0 else [True, None],
            "large": some(lambda: some(lambda: b"\xff")),
            "nothing": some(lambda: None),
        }
        for i in range(200)
    ]
    table = pa.Table.from_pylist(rows, pa.schema(list(kinds.items())))
    saved_as(lambda: table)(tmp_path / "saved")
    # pyarrow 24 writes no parquet file with a pair that is null.
    written = table.drop_columns(["nothing"] if PYARROW > 24 else ["nothing", "pair"])
    pq.write_table(written, tmp_path / "a.parquet")
    assert [one.fields for one in read(tmp_path / "saved")] == table.to_pylist() == rows
    assert [one.fields for one in read(tmp_path / "a.parquet")] == written.to_pylist()


def test_decoder_has_no_secret(tmp_path, monkeypatch):
    """Catches a decoder, which is C++ on a stranger's file, that is given a token."""
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    pq.write_table(pa.table({"prompt": [f"{i}" * 100_000 for i in range(100)]}), tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    next(rows)  # it waits now for someone to read the others
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # others' processes end meanwhile
            if (folder / "stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                children.append(folder)
    decoders = [one for one in children if b"decode_child.py" in (one / "cmdline").read_bytes()]
    if not Path("/proc/self/environ").exists():
        pytest.skip("no /proc here")
    (decoder,) = decoders
    held = (decoder / "environ").read_bytes()
    assert b"PATH=" in held and b"hf_secret" not in held
    assert len(list(rows)) == 99
