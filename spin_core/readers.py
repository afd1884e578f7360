"""Streaming readers of SFT data: .jsonl, .json, .parquet, a folder of these, or a set saved by `datasets`.

What cannot be parsed (broken JSON, not UTF-8, not parquet) is BadInput, because the rows behind it cannot be trusted
either; what parses but is no usable object (not an object, a key twice, NaN) is a record with a `reject` reason.

Covered: byte-order marks, CRLF, blank lines, U+2028 and NUL inside strings. Not covered: compressed files, encodings
other than UTF-8.
A .json array is read whole; .jsonl and .parquet are streamed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from spin_core.errors import BadInput

SUFFIXES = (".jsonl", ".json", ".parquet")
# `datasets` and the hub keep these beside the data; they hold no rows.
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json"}
SPLIT_WORDS = ("train", "test", "valid", "dev", "eval")
# A line without an end would be read whole; the longest rows of public SFT sets are below 2 MB.
LONGEST_LINE = 64 << 20
# Rows decoded at once from parquet: a 10 MB row costs 320 MB here at the worst.
PARQUET_BATCH = 32


@dataclass(frozen=True, slots=True)
class Record:
    """A row as found: file (relative to the source, empty for a single file), line or row number from 1, fields."""

    file: str
    line: int
    fields: dict[str, Any]
    reject: str = ""
    detail: str = ""


def read(path: Path, split: str = "") -> Iterator[Record]:
    """Every record of a file, folder or saved dataset, in file order; of a folder only those of `split` (`data_files`).

    Raises BadInput naming file and line for what is missing, empty or cannot be parsed.
    """
    count = 0
    for record in _saved(path, split) if is_saved(path) else _files(path, split):
        count += 1
        yield record
    if not count:
        raise BadInput(f"{path}: the dataset has no rows; give a file with at least one.")


def data_files(path: Path, split: str = "") -> list[Path]:
    """The data files below a folder (or the file itself), sorted; where files are named for splits, those of `split`.

    A file belongs to the split that its name (without `-00000-of-00001`) or one of its folders spells.
    Raises BadInput where there is none, or where files are named for other splits only.
    """
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or folder; check `dataset.path`.")
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise BadInput(f"{path}: cannot read a {path.suffix or 'suffixless'} file; give {', '.join(SUFFIXES)}.")
        return [path]
    names = [p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()]
    return [path / name for name in choose_files(names, split, str(path))]


def choose_files(names: list[str], split: str, where: str) -> list[str]:
    """Of relative file names those that hold rows of `split`, sorted; all that hold rows if none is named for a split.

    Raises BadInput, naming `where`, if none holds rows, or if there are files for other splits only.
    """
    found = [PurePosixPath(name) for name in sorted(names) if _holds_rows(PurePosixPath(name))]
    if not found:
        raise BadInput(f"{where}: there is no {', '.join(SUFFIXES)} file in it; check `dataset.path`.")
    of_split = [str(p) for p in found if split in _split_names(p)]
    named = {name for p in found for name in _split_names(p) if name.startswith(SPLIT_WORDS)}
    if split and named and not of_split:
        raise BadInput(
            f"{where}: no file is named for the split {split!r}, but there are {', '.join(sorted(named))}; "
            "set `dataset.split` (and `dataset.test_split`) to one of these."
        )
    return of_split or [str(p) for p in found]


def _holds_rows(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return name.suffix.lower() in SUFFIXES and name.name not in NOT_DATA and not hidden


def _split_names(name: PurePosixPath) -> set[str]:
    return {re.sub(r"-\d{5}-of-\d{5}.*$", "", name.stem), *name.parent.parts}


def _files(path: Path, split: str) -> Iterator[Record]:
    for file in data_files(path, split):
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        reader = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}[file.suffix.lower()]
        try:
            yield from reader(file, name)
        except OSError as error:
            raise BadInput(f"{file}: cannot be read ({error.strerror}); check the file's permissions.") from error


def _jsonl(path: Path, name: str) -> Iterator[Record]:
    start = 0
    with path.open("rb") as file:
        for number in range(1, 1 << 62):
            raw = file.readline(LONGEST_LINE + 1)
            if not raw:
                return
            if len(raw) > LONGEST_LINE:
                raise BadInput(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB; is it one object a line?")
            text = _text(raw, path, number, start).removeprefix("\ufeff" if number == 1 else "")
            start += len(raw)
            if text.strip():
                yield _record(name, number, _parse(text, path, number))


def _json(path: Path, name: str) -> Iterator[Record]:
    """An array, {"data": [array]}, or, in spite of the name, one object a line."""
    with path.open("rb") as file:
        head = file.readline(LONGEST_LINE + 1)
        if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" and file.read(1 << 16).strip():
            try:
                json.loads(head.decode("utf-8-sig"))
            except ValueError:
                pass  # an object spread over lines, or a broken line: the whole file's parser says which
            else:
                yield from _jsonl(path, name)
                return
    text = _text(path.read_bytes(), path, 0, 0).removeprefix("\ufeff")
    if not text.strip():
        return
    whole = _parse(text, path, 0)
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    if not isinstance(whole, list):
        raise BadInput(f"{path}: neither an array of objects nor {{'data': [...]}} nor one object a line; make it one.")
    for number, value in enumerate(whole, 1):
        yield _record(name, number, value)


def _text(raw: bytes, path: Path, line: int, start: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = line or raw.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}, line {line}: byte {start + error.start} of the file is not UTF-8; save the file as UTF-8."
        ) from error


class _Flaw(str):
    """Stands where something parses that JSON does not allow; says what."""


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any] | _Flaw:
    fields = dict(items)
    return fields if len(fields) == len(items) else _Flaw("a key is there twice")


def _constant(name: str) -> _Flaw:
    return _Flaw(f"{name} is not JSON")


def _flaw_in(value: Any) -> _Flaw | None:
    if isinstance(value, _Flaw):
        return value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((flaw for flaw in map(_flaw_in, inner) if flaw is not None), None)


def _parse(text: str, path: Path, line: int) -> Any:
    """The JSON value, with a `_Flaw` where it breaks the rules. `line` 0: the text is the whole file."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_constant)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise BadInput(f"{path}, {place}: broken JSON ({error.msg}); mend or remove this line.") from error
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits, or brackets nested too deep
        place = f", line {line}" if line else ""
        raise BadInput(f"{path}{place}: JSON that cannot be read ({error}); remove this row.") from error


def _record(name: str, line: int, value: Any) -> Record:
    flaw = _flaw_in(value)
    if flaw is not None:
        return Record(name, line, {}, "malformed object", str(flaw))
    if not isinstance(value, dict):
        return Record(name, line, {}, "not an object", f"a JSON {type(value).__name__}")
    return Record(name, line, value)


def _parquet(path: Path, name: str) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise BadInput(f"{path}: two columns have the same name ({', '.join(names)}); rename one.")
            for batch in file.iter_batches(batch_size=PARQUET_BATCH):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(name, number, fields)
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise BadInput(f"{path}, after row {number}: not a readable parquet file ({said}); write it again.") from error


def is_saved(path: Path) -> bool:
    """Whether `datasets`' save_to_disk wrote this directory."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _saved(path: Path, split: str) -> Iterator[Record]:
    """A directory written by `datasets`' save_to_disk (Arrow files; no code is run to read them)."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise BadInput(f"{path}: no split {split!r} in it, only {', '.join(saved)}; set `dataset.split`.")
            saved = saved[split]
        for number, fields in enumerate(saved, 1):
            yield Record("", number, dict(fields))
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(f"{path}: not a dataset that `datasets` can load ({error}); save it again.") from error
