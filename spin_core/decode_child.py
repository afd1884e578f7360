"""Parquet or Arrow rows decoded under limits, in a process of its own: `python -P decode_child.py parquet FILE`.

A file of kilobytes can say that it decodes to terabytes, and a damaged one can crash the decoder, which is C++: here
neither touches the stage. Needs pyarrow only. Out: an Arrow stream of plain values in pieces of PIECE bytes; the last
line on standard error is what is wrong with the file, where the exit code is not 0.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Decoding the largest rows needs a few copies of a batch; the stage's own memory comes on top.
MEMORY = 640 << 20
BATCH_ROWS, BATCH_BYTES = 32, 32 << 20
PIECE = 8 << 20
LONGEST_ROW = 16 << 20  # as of a JSON line (`json_reader.LONGEST_LINE`)
# A file may decode to FREE bytes and RATIO times its size more; text compresses 10 to 40 times at the best. A row
# counts for ROW bytes more, because it becomes Python objects: a billion empty rows are as bad as a gigabyte.
FREE, RATIO, ROW = 64 << 20, 200, 1024
CPU_SECONDS = 60.0  # for one batch


class Refused(Exception):
    """The file is readable, but not one that is read here."""


def plain(kind: pa.DataType) -> pa.DataType:
    """The type under which a column is handed over: values for a dictionary's numbers, integers for times (Python has
    no year 100000, and no time is text)."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return pa.int64() if kind.bit_width == 64 else pa.int32()
    return kind


def batches(kind: str, path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch], int]:
    """The file's columns, its rows, a few at a time, and how many it says it has (−1: nothing). Raises what pyarrow
    raises."""
    if kind == "arrow":
        source = pa.memory_map(str(path))
        try:
            stream = pa.ipc.open_stream(source)
        except pa.ArrowInvalid:
            whole = pa.ipc.open_file(source)
            found = (whole.get_batch(i) for i in range(whole.num_record_batches))
            return whole.schema, (part for batch in found for part in _cut(batch, BATCH_ROWS)), -1
        return stream.schema, (part for batch in stream for part in _cut(batch, BATCH_ROWS)), -1
    file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
    size = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
    each = max(1, size // max(1, file.metadata.num_rows))
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES // each))
    return file.schema_arrow, file.iter_batches(batch_size=rows, use_threads=False), file.metadata.num_rows


def decode(kind: str, path: Path, sink: Any) -> None:
    """Write the file's rows to `sink`."""
    schema, found, said = batches(kind, path)
    names = schema.names
    if len(set(names)) < len(names):
        raise Refused(f"two columns have the same name ({', '.join(names)[:200]}); rename one")
    target = pa.schema([(field.name, plain(field.type)) for field in schema])
    allowed = FREE + RATIO * path.stat().st_size
    decoded = rows = 0
    with pa.ipc.new_stream(sink, target) as out:
        for batch in found:
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            rows += batch.num_rows
            batch.validate()
            columns = [_cast(batch.column(i), field.type) for i, field in enumerate(target)]
            for piece in _pieces(pa.record_batch(columns, schema=target)):
                decoded += piece.nbytes + ROW * piece.num_rows
                if decoded > allowed:
                    raise Refused(
                        f"its rows come to over {allowed >> 20} MiB, which is {RATIO} times the file and more; is it "
                        "made to fill memory? Write it again without compression if it is not"
                    )
                if piece.nbytes > LONGEST_ROW:
                    raise Refused(f"the next row has {piece.nbytes >> 20} MiB; a row may have {LONGEST_ROW >> 20}")
                out.write_batch(piece)
        if said not in (-1, rows):
            raise Refused(f"not a readable {kind} file (its footer says {said} rows, it has {rows}); write it again")


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column if column.type == kind else column.view(kind)


def _cut(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    if batch.num_rows <= 1 or batch.nbytes <= PIECE:
        yield batch
        return
    for part in _cut(batch, (batch.num_rows + 1) // 2):
        yield from _pieces(part)


def _limit() -> None:
    """Addresses from here on, no files written, no core dump, processor time (where the system keeps such limits)."""
    used = 0
    with suppress(OSError):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = {"RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0} | ({"RLIMIT_AS": used + MEMORY} if used else {})
    for name, most in limits.items():
        with suppress(OSError, ValueError):
            resource.setrlimit(getattr(resource, name), (most, most))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, whose end closes our output
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)


def main() -> None:
    """Decode one file to standard output."""
    kind, path = sys.argv[1], Path(sys.argv[2])
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    _limit()
    try:
        with os.fdopen(os.dup(1), "wb") as sink:
            decode(kind, path, sink)
    except BrokenPipeError:
        sys.exit(1)
    except Refused as error:
        said = str(error)
    except (MemoryError, pa.ArrowMemoryError):
        said = f"decoding it needs over {MEMORY >> 20} MiB of memory; write it again in smaller pages"
    except Exception as error:  # pyarrow raises half a dozen unrelated classes for a damaged file
        said = (
            f"not a readable {kind} file ({type(error).__name__}: {' '.join(str(error).split())[:200]}); write it again"
        )
    else:
        return
    sys.stderr.write(f"\n{said}")
    sys.exit(2)


if __name__ == "__main__":
    main()
