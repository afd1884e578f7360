"""Streaming readers of SFT data: .jsonl, .json, .csv, .tsv, .parquet, .arrow and .txt, text also as .gz, .bz2 or .zst;
a folder of these; or a set saved by `datasets`.

Which files of a folder are which split, `datasets` says (`spin_core/data/choice.py`). JSON is read here, for what
`datasets` cannot say: what cannot be parsed (broken JSON, not UTF-8) is BadInput with its line and column, because the
rows behind it cannot be trusted either; what parses but is no usable object (not an object, a key twice, NaN) is a
record with a `reject` reason; and rows are themselves, not filled up with the nulls of one schema.

All are streamed, in bounded memory (`json_reader.LONGEST_LINE`, `decode_child.MEMORY`). What is not JSON, and what
save_to_disk wrote, is decoded in a child (`spin_core/data/sandbox/decode_child.py`). No code is run to read it, and no
features are decoded: they would open what a cell names (an image, a sound). Such cells come as they are stored.
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
from pathlib import Path, PurePath
from typing import Any

from spin_core.data.choice import LONGEST_README, README, Choice, choose, how
from spin_core.data.json_reader import not_utf8, read_json, read_jsonl
from spin_core.data.rows import RawRecord
from spin_core.data.sandbox.templates import KEPT
from spin_core.errors import BadInput, one_line

MOST_FILES = 50_000
CHILD = Path(__file__).parent / "sandbox" / "decode_child.py"
LONGEST_STATE = 16 << 20  # bytes of state.json, which names every file


def read(path: Path, split: str = "", config: str = "") -> Iterator[RawRecord]:
    """Every record of a file, folder or saved dataset, in file order; of a folder only those of `split` in the
    configuration `config` (`data_files`).

    Raises BadInput naming file and line for what is missing, empty or cannot be parsed.
    """
    record = None
    for record in read_saved(path, split) if is_saved(path) else _files(path, split, config):
        yield record
    if record is None:
        raise BadInput(f"{path}: the dataset has no rows; give a file with at least one.")


def data_files(path: Path, split: str = "", config: str = "") -> list[Path]:
    """The data files below a folder (or the file itself) that are `split` of `config`, in the order of reading.
    Raises BadInput as `chosen`."""
    return [path] if path.is_file() else [path / name for name in chosen(path, split, config).files]


def left_out(path: Path, split: str, config: str) -> list[str]:
    """The tables of a folder that belong to `split` and are not read, as `datasets` reads one kind of file. Raises
    BadInput as `chosen`."""
    return [] if is_saved(path) else chosen(path, split, config).left


def chosen(path: Path, split: str, config: str) -> Choice:
    """Of what is below a folder the files of `split` in `config`, as `datasets` has it; of a file itself as ".".
    Raises BadInput where there are none, they cannot be read, or it is not said which."""
    if not path.exists():
        raise BadInput(f"{path}: there is no such file or folder; check `dataset.path`.")
    if path.is_file():
        how(path.name, str(path))
        return Choice(["."])
    if not path.is_dir():
        raise BadInput(f"{path}: neither a file nor a folder (a device or a pipe?); give the path of a file.")
    names = [p.relative_to(path).as_posix() for p in below(path) if not p.is_dir()]
    made = choose(names, read_readme(path), split, config, str(path))
    for name in made.files:
        if not (path / name).is_file():
            raise BadInput(
                f"{path / name}: no regular file (a device, a pipe, a link that leads nowhere?); take it out, or fetch "
                "what it stands for (of git-annex: `git annex get`)."
            )
    return made


def read_readme(folder: Path) -> str:
    """The text of README.md, which may say how files are read; empty where there is none."""
    if not (folder / README).is_file():
        return ""
    with (folder / README).open("rb") as file:
        return file.read(LONGEST_README).decode("utf-8", "replace")


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


def split_of(name: PurePath) -> str:
    """The split that a file's name spells: `train` of train-00000-of-00001.parquet."""
    return re.sub(r"-\d{5}-of-\d{5}.*$", "", name.stem)


def _files(path: Path, split: str, config: str) -> Iterator[RawRecord]:
    made = chosen(path, split, config)
    for one in made.files:
        file, name = path / one, one if path.is_dir() else ""
        kind, packed = how(file.name, str(file))
        try:
            if kind in ("json", "jsonl"):
                yield from (read_jsonl if kind == "jsonl" else read_json)(file, name, packed)
            else:
                yield from _decoded(kind, file, name, 0, {"packed": packed, "csv": _csv_options(file, made)})
        except OSError as error:
            raise BadInput(f"{file}: cannot be read ({error.strerror}); check the file's permissions.") from error
        except UnicodeDecodeError as error:
            raise not_utf8(file, packed) from error


def _csv_options(file: Path, made: Choice) -> dict[str, Any]:
    """What README.md says, and a tab for .tsv."""
    return ({"sep": "\t"} if ".tsv" in file.name.lower() else {}) | made.options


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


def _decoded(
    kind: str, path: Path, name: str, before: int, options: dict[str, Any] | None = None
) -> Iterator[RawRecord]:
    import pyarrow as pa

    environment = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("ARROW_")}
    environment["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # others set addresses aside by the gigabyte
    number = before
    with subprocess.Popen(
        [sys.executable, "-P", str(CHILD), kind, str(path.absolute()), json.dumps(options or {})],
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
