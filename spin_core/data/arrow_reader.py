"""Rows of parquet files, and of what `datasets`' save_to_disk wrote, decoded in a child
(`spin_core/data/sandbox/decode_child.py`).

No code is run to read them, and none of `datasets` either: its features would open what a cell names (an image, a
sound). Such cells come as they are stored.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from spin_core.data.rows import RawRecord
from spin_core.data.sandbox.templates import KEPT
from spin_core.errors import BadInput, one_line

CHILD = Path(__file__).parent / "sandbox" / "decode_child.py"
LONGEST_STATE = 16 << 20  # bytes of state.json, which names every file


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
