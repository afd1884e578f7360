"""Streaming readers of SFT data: .jsonl, .json, .parquet, a folder of these, or a set saved by `datasets`.

What cannot be parsed (broken JSON, not UTF-8, not parquet) is BadInput, because the rows behind it cannot be trusted
either; what parses but is no usable object (not an object, a key twice, NaN) is a record with a `reject` reason.

All are streamed, in bounded memory (`json_reader.LONGEST_LINE`, `decode_child.MEMORY`). Not covered: compressed files.
Parquet, and what `datasets`' save_to_disk wrote, is decoded in a child (`spin_core/data/sandbox/decode_child.py`). No
code is run to read it, and none of `datasets` either: its features would open what a cell names (an image, a sound).
Such cells come as they are stored.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from spin_core.data.json_reader import not_utf8, read_json, read_jsonl
from spin_core.data.rows import RawRecord
from spin_core.data.sandbox.templates import KEPT
from spin_core.errors import BadInput, one_line

SUFFIXES = (".jsonl", ".json", ".parquet")
# `datasets` and the hub keep these beside the data; they hold no rows.
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json"}
MOST_FILES = 50_000
SPLIT_WORDS = ("train", "test", "valid", "dev", "eval")
CHILD = Path(__file__).parent / "sandbox" / "decode_child.py"
LONGEST_STATE = 16 << 20  # bytes of state.json, which names every file


def read(path: Path, split: str = "") -> Iterator[RawRecord]:
    """Every record of a file, folder or saved dataset, in file order; of a folder only those of `split` (`data_files`).

    Raises BadInput naming file and line for what is missing, empty or cannot be parsed.
    """
    record = None
    for record in read_saved(path, split) if is_saved(path) else _files(path, split):
        yield record
    if record is None:
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
    if not path.is_dir():
        raise BadInput(f"{path}: neither a file nor a folder (a device or a pipe?); give the path of a file.")
    names = [p.relative_to(path).as_posix() for p in below(path) if not p.is_dir()]
    chosen = [path / name for name in choose_files(names, split, str(path))]
    for file in chosen:
        if not file.is_file():
            raise BadInput(
                f"{file}: no regular file (a device, a pipe, a link that leads nowhere?); take it out, or fetch what "
                "it stands for (of git-annex: `git annex get`)."
            )
    return chosen


def below(folder: Path) -> list[Path]:
    """Everything below a folder. Raises BadInput where that is more than any data set or model has: `/` and a home are
    named by mistake, and to look through them takes minutes."""
    paths = list(islice(folder.rglob("*"), MOST_FILES + 1))
    if len(paths) > MOST_FILES:
        raise BadInput(
            f"{folder}: over {MOST_FILES:,} files are below it; name the folder that has only what is meant."
        )
    return paths


def file_names(folder: Path) -> list[str]:
    """The relative names of all files below a folder. Raises BadInput as `below`."""
    return [path.relative_to(folder).as_posix() for path in below(folder) if path.is_file()]


def choose_files(names: list[str], split: str, where: str) -> list[str]:
    """Of relative file names those that hold rows of `split`, sorted; all that hold rows if none is named for a split.

    Raises BadInput, naming `where`, if none holds rows, or if there are files for other splits only.
    """
    files = [path for path in map(PurePosixPath, sorted(names)) if _holds_rows(path)]
    if not files:
        raise BadInput(f"{where}: there is no {', '.join(SUFFIXES)} file in it; check `dataset.path`.")
    splits = {str(path): {split_of(path), *path.parent.parts} for path in files}
    of_split = [name for name, spelt in splits.items() if split in spelt]
    named = {word for spelt in splits.values() for word in spelt if word.startswith(SPLIT_WORDS)}
    if split and named and not of_split:
        raise BadInput(
            f"{where}: no file is named for the split {split!r}, but there are {', '.join(sorted(named))}; "
            "set `dataset.split` (and `dataset.test_split`) to one of these."
        )
    return of_split or list(splits)


def _holds_rows(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return name.suffix.lower() in SUFFIXES and name.name not in NOT_DATA and not hidden


def split_of(name: PurePosixPath) -> str:
    """The split that a file's name spells: `train` of train-00000-of-00001.parquet."""
    return re.sub(r"-\d{5}-of-\d{5}.*$", "", name.stem)


def _files(path: Path, split: str) -> Iterator[RawRecord]:
    for file in data_files(path, split):
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        reader = {".jsonl": read_jsonl, ".json": read_json, ".parquet": read_parquet}[file.suffix.lower()]
        try:
            yield from reader(file, name)
        except OSError as error:
            raise BadInput(f"{file}: cannot be read ({error.strerror}); check the file's permissions.") from error
        except UnicodeDecodeError as error:
            raise not_utf8(file) from error


def is_saved(path: Path) -> bool:
    """Whether `datasets`' save_to_disk wrote this directory."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_parquet(path: Path, name: str) -> Iterator[RawRecord]:
    """Every row of one parquet file. `name` becomes `RawRecord.file`. Raises BadInput naming the row before damage."""
    return _decoded("parquet", path, name, 0)


def read_saved(path: Path, split: str) -> Iterator[RawRecord]:
    """The rows of a directory that save_to_disk wrote, as those of one file. Raises BadInput."""
    if (path / "dataset_dict.json").is_file():
        splits = _state(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or split not in splits or Path(split).name != split:
            named = ", ".join(map(str, splits if isinstance(splits, list) else []))[:300]
            raise BadInput(f"{path}: no split {split!r} in it, only {named}; set `dataset.split`.")
        path = path / split
    file = path / "state.json"
    state = _state(file)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise BadInput(f"{file}: rows picked by an index of their own are not read; save the dataset again.")
    listed = state.get("_data_files")
    entries = listed if isinstance(listed, list) else []
    names = [str(one.get("filename")) for one in entries if isinstance(one, dict)]
    if not names or len(names) < len(entries) or any(Path(one).name != one for one in names):
        raise BadInput(f"{file}: `_data_files` does not list files of this folder; save the dataset again.")
    count = 0
    for one in names:
        if not (path / one).is_file():
            raise BadInput(f"{path / one}: there is no such file, which state.json names; save the dataset again.")
        for record in _decoded("arrow", path / one, "", count):
            count = record.line
            yield record


def _state(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            data = stream.read(LONGEST_STATE + 1)
        content = json.loads(data) if len(data) <= LONGEST_STATE else None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file}: cannot be read ({one_line(error)}); save the dataset again.") from error
    if not isinstance(content, dict):
        raise BadInput(f"{file}: not what save_to_disk writes; save the dataset again.")
    return content


def _decoded(kind: str, path: Path, name: str, before: int) -> Iterator[RawRecord]:
    import pyarrow as pa

    environment = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("ARROW_")}
    environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others set addresses aside by the gigabyte
    number = before
    with subprocess.Popen(
        [sys.executable, "-P", str(CHILD), kind, str(path.absolute())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as child:
        assert child.stdout and child.stderr
        done = False
        try:
            with suppress(pa.ArrowException, OSError):  # a stream that breaks off: the child says why
                with pa.ipc.open_stream(child.stdout) as stream:
                    for batch in stream:
                        for record in _rows(batch, name, number):
                            number += 1
                            yield record
                done = True
        finally:
            if not done and child.stdout.read(1):  # it is still at work, and nobody wants the rest
                child.kill()
        message = child.stderr.read().decode("utf-8", "replace").strip()
    if child.returncode or not done:
        where = f"{path}, after row {number}" if number > before else str(path)
        raise BadInput(f"{where}: {_why(kind, child.returncode, message)}.")


def _why(kind: str, code: int, message: str) -> str:
    if code == 2 and message:
        return message.splitlines()[-1]
    if code == -signal.SIGPROF:
        from spin_core.data.sandbox.decode_child import CPU_SECONDS

        return f"a few rows take over {CPU_SECONDS:g} s to decode; write the file again"
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"not a readable {kind} file (its decoder ended: {how}); write it again"


def _rows(batch: Any, name: str, number: int) -> Iterator[RawRecord]:
    try:
        for fields in batch.to_pylist():
            number += 1
            yield RawRecord(name, number, fields)
    except (ValueError, OverflowError, RecursionError, NotImplementedError, KeyError, TypeError) as error:
        # One cell that Python has no value for (a string that is not UTF-8) spoils the batch: its rows one by one.
        if batch.num_rows == 1:
            yield RawRecord(name, number + 1, {}, "malformed object", one_line(error, 180, kind=True))
            return
        for row in range(batch.num_rows):
            yield from _rows(batch.slice(row, 1), name, number + row)
