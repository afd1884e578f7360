"""Readers: what is read from honest files, and one sentence naming the place for every broken one."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.data.readers import data_files, read
from spin_core.errors import BadInput
from tests.faults.input.measured import read_measured

ROW = {"question": "q", "answer": "a"}


def fields(path, split=""):
    return [record.fields for record in read(path, split)]


@pytest.mark.parametrize(
    "name, data",
    [
        ("lines.jsonl", b'{"a": 1}\n{"a": 2}'),
        ("crlf.jsonl", b'{"a": 1}\r\n{"a": 2}\r\n'),
        ("bom.jsonl", b'\xef\xbb\xbf{"a": 1}\n\n  \n{"a": 2}\n'),
        ("array.json", b'[{"a": 1},\n {"a": 2}]'),
        ("bom.json", b'\xef\xbb\xbf[{"a": 1}, {"a": 2}]'),
        ("data.json", b'{"data": [{"a": 1}, {"a": 2}], "version": 1}'),
        ("lines.json", b'{"a": 1}\n{"a": 2}\n'),
    ],
)
def test_read_json_shapes_give_every_object(tmp_path, name, data):
    """Catches: a byte-order mark, CRLF, blank line or the array form breaking or dropping a row."""
    (tmp_path / name).write_bytes(data)
    assert fields(tmp_path / name) == [{"a": 1}, {"a": 2}]


def test_read_jsonl_odd_separators_inside_strings_stay_one_row(tmp_path):
    """Catches: str.splitlines, which cuts a row at U+2028, and readers that stop at NUL."""
    text = "a\u2028b\u2029c\x85d\x0be\x00f"
    (tmp_path / "a.jsonl").write_text(json.dumps({"t": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert fields(tmp_path / "a.jsonl") == [{"t": text}]


def test_read_jsonl_line_numbers_count_blank_lines(tmp_path):
    """Catches: a line number that is the row's, so that the user looks at the wrong line."""
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\n{"a": 2}\n')
    assert [record.line for record in read(tmp_path / "a.jsonl")] == [1, 3]


def test_read_parquet_gives_rows_as_json_does(tmp_path):
    """Catches: rows lost between batches."""
    rows = [{"q": str(i), "m": [{"role": "user", "content": "é"}]} for i in range(100)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert fields(tmp_path / "a.parquet") == rows
    assert [record.line for record in read(tmp_path / "a.parquet")] == list(range(1, 101))


def test_read_folder_gives_the_split_in_name_order(tmp_path):
    """Catches: test files read as training data, and an order that depends on the file system."""
    (tmp_path / "data").mkdir()
    for name in ("train-00001-of-00002", "test-00000-of-00001", "train-00000-of-00002"):
        (tmp_path / "data" / f"{name}.jsonl").write_text(json.dumps({"from": name}) + "\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / ".cache.jsonl").write_text("{}")
    assert [f["from"] for f in fields(tmp_path, "train")] == ["train-00000-of-00002", "train-00001-of-00002"]
    assert [f["from"] for f in fields(tmp_path, "test")] == ["test-00000-of-00001"]


def test_data_files_of_unnamed_folder_are_all(tmp_path):
    """Catches: an ordinary folder refused because no file is called train."""
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text("{}")
    assert [p.name for p in data_files(tmp_path, "train")] == ["a.jsonl", "b.jsonl"]


def test_data_files_without_the_split_names_those_there(tmp_path):
    """Catches: training on train_sft and test_sft together because the split is called train."""
    for name in ("train_sft-00000-of-00001.parquet", "test_sft-00000-of-00001.parquet"):
        (tmp_path / name).write_bytes(b"")
    for split in ("train", "train_sft"):
        assert [p.name for p in data_files(tmp_path, split)] == ["train_sft-00000-of-00001.parquet"]
    with pytest.raises(BadInput, match=r"train, test; set `dataset\.split`"):
        data_files(tmp_path, "validation")


def test_read_saved_dataset_gives_the_split(tmp_path):
    """Catches: reading the JSON beside a saved dataset in place of its rows."""
    import datasets

    made = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list([ROW, ROW]), "test": datasets.Dataset.from_list([ROW])}
    )
    made.save_to_disk(str(tmp_path / "saved"))
    assert fields(tmp_path / "saved", "train") == [ROW, ROW]
    with pytest.raises(BadInput, match="no split 'val'"):
        fields(tmp_path / "saved", "val")


BROKEN = {
    "empty.jsonl": (b"", "no rows"),
    "blank.jsonl": (b"\n \n", "no rows"),
    "empty.json": (b"[]", "no rows"),
    "cut.jsonl": (b'{"a": 1}\n{"a": 2}\n{"a": ', "line 3, column 7: broken JSON"),
    "cut.json": (b'[{"a": 1},\n{"a" 2}]', "line 2, column 6: broken JSON"),
    "latin.jsonl": (b'{"a": 1}\n{"a": "\xe9"}\n', "line 2: byte 16 of the file is not UTF-8"),
    "latin.json": (b'[{"a": 1},\n{"a": "\xe9"}]', "line 2: byte 18 of the file is not UTF-8"),
    "utf16.jsonl": ('{"a": 1}'.encode("utf-16"), "line 1: this is UTF-16 or UTF-32 text"),
    "deep.jsonl": (b'{"a": 1}\n' + b"[" * 200_000, "line 2: JSON that cannot be read"),
    "digits.jsonl": (b'{"a": ' + b"9" * 5_000 + b"}", "line 1: JSON that cannot be read"),
    "object.json": (b'{"rows": [1]}', "neither an array of objects"),
    "text.parquet": (b"not parquet", "not a readable parquet file"),
    "cut.parquet": (b"PAR1" + b"\0" * 40, "not a readable parquet file"),
    "empty.parquet": (b"", "not a readable parquet file"),
    "data.xls": (b"a,b\n", "cannot read a .xls file"),
    "data.csv": (b"a,b\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_read_broken_file_is_one_sentence_naming_the_place(tmp_path, name):
    """Catches: a traceback, a silent skip, or an error that does not say where to look."""
    data, message = BROKEN[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput) as raised:
        list(read(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value) and message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_read_damaged_parquet_page_is_bad_input(tmp_path):
    """Catches: an Arrow traceback for a file whose footer is good and whose data is not."""
    pq.write_table(pa.table({"q": [f"{i} apples" for i in range(3000)]}), tmp_path / "a.parquet")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[30:4000] = b"\xff" * 3970
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(BadInput, match="not a readable parquet file"):
        list(read(tmp_path / "a.parquet"))


def test_read_missing_path_and_folder_without_data_are_bad_input(tmp_path):
    """Catches: an empty dataset where the path is wrong."""
    with pytest.raises(BadInput, match="no such file or folder"):
        list(read(tmp_path / "none.jsonl"))
    with pytest.raises(BadInput, match=r"no \.jsonl, \.json, \.parquet"):
        list(read(tmp_path))


@pytest.mark.parametrize(
    "line, reason",
    [
        ("[1]", "not an object"),
        ("3", "not an object"),
        ("null", "not an object"),
        ('{"a": 1, "a": 2}', "malformed object"),
        ('{"a": {"b": 1, "b": 2}}', "malformed object"),
        ('{"a": [NaN]}', "malformed object"),
        ('{"a": -Infinity}', "malformed object"),
    ],
)
@pytest.mark.parametrize("form", ["{}\n%s\n{}\n", "[{},\n%s,\n{}]"])
def test_read_unusable_object_is_a_reject_and_its_neighbours_are_not(tmp_path, line, reason, form):
    """Catches: the last of two keys winning silently, NaN as a number, or one bad row spoiling a full array."""
    path = tmp_path / ("a.jsonl" if form.startswith("{") else "a.json")
    path.write_text(form % line)
    assert [record.reject for record in read(path)] == ["", reason, ""]


def test_read_jsonl_endless_line_is_refused_without_reading_it(tmp_path):
    """Catches: a file read in full before its first row, and an endless line that fills the memory (32 GB here)."""
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.write(b'{"a": 1}\n')
        file.truncate(32 << 30)
    records = read(tmp_path / "a.jsonl")
    assert next(records).fields == {"a": 1}
    with pytest.raises(BadInput, match="line 2: longer than 16 MiB"):
        next(records)


def test_read_parquet_large_rows_stay_within_memory(tmp_path):
    """Catches: decoding a full parquet file at once: 125 rows of 3 MB, of which no two are the same."""
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("question", pa.string())])) as writer:
        for batch in range(25):
            writer.write_batch(pa.record_batch({"question": [f"{batch} {row} " + "x" * 3_000_000 for row in range(5)]}))
    rows, here, child, _ = read_measured(tmp_path / "a.parquet")
    assert rows == 125
    assert here < 200 and child < 430, "375 MB of rows, and 80 of libraries"
