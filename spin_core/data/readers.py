"""Streaming readers of SFT data: .jsonl, .json, .parquet, a folder of these, or a set saved by `datasets`.

What cannot be parsed (broken JSON, not UTF-8, not parquet) is BadInput, because the rows behind it cannot be trusted
either; what parses but is no usable object (not an object, a key twice, NaN) is a record with a `reject` reason.

All are streamed, in bounded memory (`json_reader.LONGEST_LINE`, `decode_child.MEMORY`). Not covered: compressed files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from spin_core.data.arrow_reader import read_parquet, read_saved
from spin_core.data.json_reader import not_utf8, read_json, read_jsonl
from spin_core.data.rows import RawRecord
from spin_core.errors import BadInput

SUFFIXES = (".jsonl", ".json", ".parquet")
# `datasets` and the hub keep these beside the data; they hold no rows.
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "package.json"}
MOST_FILES = 50_000
SPLIT_WORDS = ("train", "test", "valid", "dev", "eval")


def read(path: Path, split: str = "") -> Iterator[RawRecord]:
    """Every record of a file, folder or saved dataset, in file order; of a folder only those of `split` (`data_files`).

    Raises BadInput naming file and line for what is missing, empty or cannot be parsed.
    """
    count = 0
    for record in read_saved(path, split) if is_saved(path) else _files(path, split):
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
    if not path.is_dir():
        raise BadInput(f"{path}: neither a file nor a folder (a device or a pipe?); give the path of a file.")
    names = [p.relative_to(path).as_posix() for p in below(path) if not p.is_dir()]
    chosen = [path / name for name in choose_files(names, split, str(path))]
    for file in chosen:
        if not file.is_file():
            raise BadInput(f"{file}: no regular file (a link that leads nowhere, a device, a pipe?); take it out.")
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
    files = [PurePosixPath(name) for name in sorted(names) if _holds_rows(PurePosixPath(name))]
    if not files:
        raise BadInput(f"{where}: there is no {', '.join(SUFFIXES)} file in it; check `dataset.path`.")
    of_split = [str(p) for p in files if split in _split_names(p)]
    named = {name for p in files for name in _split_names(p) if name.startswith(SPLIT_WORDS)}
    if split and named and not of_split:
        raise BadInput(
            f"{where}: no file is named for the split {split!r}, but there are {', '.join(sorted(named))}; "
            "set `dataset.split` (and `dataset.test_split`) to one of these."
        )
    return of_split or [str(p) for p in files]


def _holds_rows(name: PurePosixPath) -> bool:
    hidden = any(part.startswith(".") for part in name.parts)
    return name.suffix.lower() in SUFFIXES and name.name not in NOT_DATA and not hidden


def split_of(name: PurePosixPath) -> str:
    """The split that a file's name spells: `train` of train-00000-of-00001.parquet."""
    return re.sub(r"-\d{5}-of-\d{5}.*$", "", name.stem)


def _split_names(name: PurePosixPath) -> set[str]:
    return {split_of(name), *name.parent.parts}


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
