"""Parquet, Arrow, csv or text rows decoded under limits, in a process of its own:
`python -P decode_child.py parquet FILE OPTIONS`.

A file of kilobytes can say that it decodes to terabytes, and a damaged one can crash the decoder, which is C++: here
neither touches the stage. Needs pyarrow only, and pandas for csv, which is what `datasets` reads it with. OPTIONS is
JSON: `{"packed": compression, "csv": options of pandas}`. Out: an Arrow stream of plain values in pieces of PIECE
bytes; the last line on standard error is what is wrong with the file, where the exit code is not 0.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Decoding the largest rows needs a few copies of a batch; the stage's own memory comes on top. A mapped file is no part
# of it: its pages can be dropped at any time.
MEMORY = 640 << 20
BATCH_ROWS, BATCH_BYTES = 32, 32 << 20
PIECE = 8 << 20
LONGEST_ROW = 16 << 20  # as of a JSON line (`json_reader.LONGEST_LINE`)
# What a value takes in the stage beside its bytes, at every level of nesting: nulls take none in the file. And a row.
VALUE, HEAVIEST_ROW = 64, 128 << 20
# Rows come a few at a time, so what a file decodes to costs time, not memory: FREE bytes, and RATIO times its size more
# (text compresses 10 to 40 times at the best). A row counts for ROW bytes more: a million empty ones take a while too.
FREE, RATIO, ROW = 1 << 30, 200, 1024
CPU_SECONDS = 60.0  # for one batch
CSV_ROWS = 256
CALLED = {"delimiter": "sep", "column_names": "names"}  # what `datasets` calls otherwise than pandas
TEXT = pa.schema([("text", pa.large_string())])


class Refused(Exception):
    """The file is readable, but not one that is read here."""


def plain(kind: pa.DataType, text: bool = True) -> pa.DataType:
    """The type under which a column is handed over: values for a dictionary's numbers, integers for times (Python has
    no year 100000, and no time is text), texts for views; with `text` False bytes in place of texts. Raises Refused for
    the types whose values can be one and the same piece of memory many times over."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return plain(kind.storage_type, text)
    if types.is_dictionary(kind):
        return plain(kind.value_type, text)
    if is_time(kind):
        return pa.int64() if kind.bit_width == 64 else pa.int32()
    if types.is_null(kind):
        return pa.bool_()  # pyarrow miscounts nulls in a list when it casts
    if types.is_string(kind):
        return kind if text else pa.binary()
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_string() if text else pa.large_binary()
    if types.is_binary_view(kind):
        return pa.large_binary()
    if types.is_map(kind):
        return pa.map_(plain(kind.key_type, text), plain(kind.item_type, text))
    if types.is_fixed_size_list(kind) and kind.list_size:
        return pa.list_(plain(kind.value_type, text), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        return (pa.list_ if types.is_list(kind) else pa.large_list)(plain(kind.value_type, text))
    if types.is_struct(kind):
        return pa.struct([(part.name, plain(part.type, text)) for part in kind])
    if kind.num_fields or types.is_run_end_encoded(kind):
        raise Refused(f"a column of the type {str(kind)[:150]} is not read; write it as lists or text, or leave it out")
    return kind


def is_time(kind: pa.DataType) -> bool:
    """Whether the values are times of any kind."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_time(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return is_time(kind.value_type)
    return pa.types.is_temporal(kind) and not pa.types.is_interval(kind)


def batches(kind: str, source: Any, csv: dict[str, Any]) -> tuple[pa.Schema, Iterator[pa.RecordBatch], int]:
    """The file's columns, its rows, a few at a time, and how many it says it has (−1: nothing). Raises what pyarrow
    and pandas raise."""
    if kind == "csv":
        return *_csv(source, csv), -1
    if kind == "text":
        return TEXT, _text(source), -1
    if kind == "arrow":
        try:
            stored = stream = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            stored = pa.ipc.open_file(source)
            stream = (stored.get_batch(i) for i in range(stored.num_record_batches))
        return stored.schema, (part for batch in stream for part in _cut(batch, BATCH_ROWS)), -1
    file = pq.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
    size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    each = max(1, size // max(1, file.metadata.num_rows))
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES // each))
    return file.schema_arrow, file.iter_batches(batch_size=rows, use_threads=False), file.metadata.num_rows


def _csv(source: Any, options: dict[str, Any]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Every cell as the text that it is: `datasets` guesses, and makes 7 of 007 and nothing of None, NA and null.
    Empty cells are nulls, as there."""
    import pandas as pd

    given = {CALLED.get(name, name): value for name, value in options.items()}
    try:
        frames = pd.read_csv(
            source, dtype=str, keep_default_na=False, na_values=[""], chunksize=CSV_ROWS, on_bad_lines="error", **given
        )
        first = next(frames)
    except pd.errors.EmptyDataError:
        return pa.schema([]), iter(())
    except StopIteration:
        first = pd.DataFrame()
    schema = pa.schema([(str(name), pa.large_string()) for name in first.columns])

    def tables() -> Iterator[pa.RecordBatch]:
        for frame in chain([first], frames):
            if not isinstance(frame.index, pd.RangeIndex):
                raise Refused("its rows have more cells than its first line names; name every column there")
            frame.columns = schema.names
            yield pa.RecordBatch.from_pandas(frame, schema, preserve_index=False)

    return schema, tables() if len(first) else iter(())


def _text(source: Any) -> Iterator[pa.RecordBatch]:
    lines = io.TextIOWrapper(source, "utf-8")
    while several := list(islice(iter(partial(lines.readline, LONGEST_ROW + 1), ""), CSV_ROWS)):
        if len(max(several, key=len)) > LONGEST_ROW:
            raise Refused(f"a line is longer than {LONGEST_ROW >> 20} MiB; write shorter ones")
        yield pa.record_batch([[line.removesuffix("\n") for line in several]], TEXT)


def decode(kind: str, source: Any, size: int, sink: Any, csv: dict[str, Any]) -> None:
    """Write the rows of a file of `size` bytes to `sink`."""
    schema, rest, promised = batches(kind, source, csv)
    names = schema.names
    if len(set(names)) < len(names):
        raise Refused(f"two columns have the same name ({', '.join(names)[:200]}); rename one")
    # A time, in this column, is a float: of a whole number it is not known how it would be written, so it is no answer.
    target = pa.schema([(one.name, pa.float64() if is_time(one.type) else plain(one.type)) for one in schema])
    allowed = FREE + RATIO * size
    decoded = rows = 0
    with pa.ipc.new_stream(sink, target) as out:
        for batch in rest:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            rows += batch.num_rows
            batch.validate()
            plainly = [_values(batch.column(i), plain(one.type)) for i, one in enumerate(schema)]
            columns = [one.cast(field.type, safe=False) for one, field in zip(plainly, target, strict=True)]
            for piece, weight in _pieces(pa.record_batch(columns, schema=target)):
                if piece.nbytes > LONGEST_ROW:
                    raise Refused(f"the next row has {piece.nbytes >> 20} MiB; a row may have {LONGEST_ROW >> 20}")
                if weight > HEAVIEST_ROW:
                    most = f"{HEAVIEST_ROW // VALUE:,}"
                    raise Refused(f"the next row has {weight // VALUE:,} values in its lists; a row may have {most}")
                decoded += weight + ROW * piece.num_rows
                if decoded > allowed:
                    raise Refused(
                        f"its rows come to over {allowed >> 20} MiB, which is {RATIO} times the file and more; is it "
                        "made to fill memory? If not, write it without compression and dictionary encoding, or as "
                        "several files"
                    )
                out.write_batch(piece)
        if promised not in (-1, rows):
            raise Refused(
                f"not a readable {kind} file (its footer says {promised} rows, it has {rows}); write it again"
            )


def _values(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column as `kind`, which is its `plain` type; no offset of the file reaches the stage unchecked. Raises
    ArrowInvalid for one that is wrong."""
    column = column.cast(kind)
    try:  # as bytes: a text that is not UTF-8 spoils a row, not the file
        column.cast(plain(kind, text=False)).validate(full=True)
    except pa.ArrowInvalid as error:
        raise pa.ArrowInvalid(f"a value ends before it begins, or lies outside of the others: {error}") from error
    return column


def _count(column: pa.Array) -> int:
    """How many Python objects the column becomes; an object of fields counts for four."""
    if pa.types.is_map(column.type):  # which is a list of keys and values
        column = column.view(pa.list_(pa.struct([column.type.key_field, column.type.item_field])))
    if pa.types.is_struct(column.type):
        return 4 * len(column) + sum(map(_count, column.flatten()))
    return len(column) + (_count(column.flatten()) if column.type.num_fields else 0)


def _cut(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _pieces(batch: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The batch in pieces that are small as Python objects, or of one row; and what each takes."""
    weight = batch.nbytes + VALUE * sum(map(_count, batch.columns))
    if batch.num_rows <= 1 or weight <= PIECE:
        yield batch, weight
        return
    for part in _cut(batch, (batch.num_rows + 1) // 2):
        yield from _pieces(part)


def _limit() -> None:
    """Addresses from here on, no files written, no core dump, processor time (where the system keeps such limits)."""
    used = 0
    with suppress(OSError):
        used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0} | ({"RLIMIT_AS": used + MEMORY} if used else {})
    for name, most in limits.items():
        with suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, whose end closes our output
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)


def main() -> None:
    """Decode one file to standard output."""
    kind, path, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    try:
        # Mapped before the limit is set, so that the limit is on top of it: shards have up to gigabytes.
        source = pa.memory_map(str(path)) if kind == "arrow" else path
        if kind in ("csv", "text"):
            source = pa.input_stream(str(path), compression=options.get("packed") or None)
        if kind == "csv":
            import pandas as pd  # noqa: F401 - its addresses are no part of the limit either
        _limit()
        with os.fdopen(os.dup(1), "wb") as sink:
            decode(kind, source, path.stat().st_size, sink, options.get("csv", {}))
    except BrokenPipeError:
        sys.exit(1)
    except Refused as error:
        message = str(error)
    except (MemoryError, pa.ArrowMemoryError):
        message = f"decoding it needs over {MEMORY >> 20} MiB of memory; write it again in smaller pages"
    except Exception as error:  # pyarrow raises half a dozen unrelated classes for a damaged file
        message = (
            f"not a readable {kind} file ({type(error).__name__}: {' '.join(str(error).split())[:200]}); write it again"
        )
    else:
        return
    sys.stderr.write(f"\n{message}")
    sys.exit(2)


if __name__ == "__main__":
    main()
