"""Parquet tables that are larger than memory: written byte for byte as pyarrow writes them from memory, and read a few
rows at a time.

Not a format of its own: pyarrow makes pages, statistics and footer. It does so column by column, so all rows of a row
group (a million) have to be there; over HELD bytes they wait in unnamed files beside the output, mapped into memory.
Not a `ParquetWriter` flushed by rows or bytes: it would make a row group of each flush, so other bytes, another digest
of the same rows and other keys behind it (measured, pyarrow 26: of 9,000 rows 1 row group became 9). Batches written as
one table of several chunks do not help either: pages end where chunks do.
Covered: columns of text, and of lists and structures of text, without nulls where they do not fit into memory.
"""

from __future__ import annotations

import mmap
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from spin_core.errors import BadInput, one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

HELD = 64 << 20  # bytes of a table in memory: 50,000 rows of GSM8K; most sets never touch the disk here
MOST = (1 << 31) - 1  # bytes of text that one Arrow array can number; behind them the column has another one
DROP_SECONDS = 0.05  # mapped pages count as memory until they are given up; pyarrow reads 20 to 40 MB in that time
READ_ROWS, READ_BYTES = 1024, 16 << 20


def write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write one table to `path`, the same bytes as `pyarrow.parquet.write_table` of all batches as one.

    Raises OSError where the disk is full, ValueError for a null in a table of more bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, size, rest = [], 0, iter(batches)
    for batch in rest:
        first.append(batch)
        size += batch.nbytes
        if size > HELD:
            break
    else:
        pq.write_table(pa.Table.from_batches(first, schema).combine_chunks(), path)
        return
    rows = pa.struct(list(schema))
    parts = [_Spilled(rows, path.parent)]  # each becomes one batch, so that all of a column is one array
    while first:
        parts[-1].append(first.pop(0).to_struct_array())
    for batch in rest:
        if parts[-1].largest + batch.nbytes > MOST:
            parts.append(_Spilled(rows, path.parent))
        parts[-1].append(batch.to_struct_array())
    mapped: list[mmap.mmap] = []
    table = pa.Table.from_batches([pa.RecordBatch.from_struct_array(part.array(mapped)) for part in parts], schema)
    with _dropped(mapped):
        pq.write_table(table, path)


def read_batches(path: Path, wanted: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """The columns that are there of `wanted`, READ_ROWS or fewer rows at a time. Raises BadInput naming the file."""
    with _opened(path) as file:
        groups = (file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        each = max(1, sum(groups) // max(1, file.metadata.num_rows))
        rows = max(1, min(READ_ROWS, READ_BYTES // each))
        names = [name for name in file.schema_arrow.names if name in set(wanted)]
        yield from file.iter_batches(batch_size=rows, columns=names, use_threads=False)


def column_names(path: Path) -> list[str]:
    """The columns of a parquet file. Raises BadInput naming it."""
    with _opened(path) as file:
        return list(file.schema_arrow.names)


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a readable parquet file ({one_line(error)}); make it again.") from error


class _Spilled:
    """Arrays of one type, one after the other on disk: what Arrow has in its buffers, a file each."""

    def __init__(self, kind: pa.DataType, folder: Path):
        import pyarrow as pa

        self.kind, self.rows, self.size = kind, 0, 0  # size: of what the offsets number, values or bytes
        self._offsets = self._bytes = None
        self._below: list[_Spilled] = []
        if pa.types.is_struct(kind):
            self._below = [_Spilled(field.type, folder) for field in kind]
            return
        self._offsets = _unnamed(folder)
        self._offsets.write(b"\0\0\0\0")
        if pa.types.is_list(kind):
            self._below = [_Spilled(kind.value_type, folder)]
        else:
            assert pa.types.is_string(kind), kind
            self._bytes = _unnamed(folder)

    @property
    def largest(self) -> int:
        return max([self.size, *(below.largest for below in self._below)])

    def append(self, array: pa.Array) -> None:
        import numpy
        import pyarrow as pa

        if array.null_count:
            raise ValueError("a table that does not fit into memory cannot have nulls")
        self.rows += len(array)
        if pa.types.is_struct(self.kind):
            for i, below in enumerate(self._below):
                below.append(array.field(i))
            return
        assert self._offsets
        offsets = numpy.frombuffer(array.buffers()[1], numpy.int32)[array.offset : array.offset + len(array) + 1]
        start, end = int(offsets[0]), int(offsets[-1])
        self._offsets.write((offsets[1:] - start + self.size).astype(numpy.int32).tobytes())
        self.size += end - start
        if self._bytes:
            if end > start:
                self._bytes.write(array.buffers()[2][start:end])
        else:
            self._below[0].append(array.values.slice(start, end - start))

    def array(self, mapped: list[mmap.mmap]) -> pa.Array:
        """All of it as one array, whose buffers are maps of the files."""
        import pyarrow as pa

        below = [one.array(mapped) for one in self._below]
        files = [file for file in (self._offsets, self._bytes) if file]
        buffers = [None, *(_map(file, mapped) for file in files)]
        return pa.Array.from_buffers(self.kind, self.rows, buffers, null_count=0, children=below or None)


def _unnamed(folder: Path) -> BinaryIO:
    return tempfile.TemporaryFile(dir=folder)


def _map(file: BinaryIO, mapped: list[mmap.mmap]) -> Any:
    import pyarrow as pa

    file.flush()
    if not file.tell():
        return pa.py_buffer(b"")
    mapped.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    file.close()
    return pa.py_buffer(mapped[-1])


@contextmanager
def _dropped(mapped: list[mmap.mmap]) -> Iterator[None]:
    """Meanwhile give up the mapped pages now and then: whoever reads one again gets it from the file again."""
    done = threading.Event()

    def drop() -> None:
        while not done.wait(DROP_SECONDS):
            for one in mapped:
                one.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=drop, daemon=True)
    if hasattr(mmap, "MADV_DONTNEED"):
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()
