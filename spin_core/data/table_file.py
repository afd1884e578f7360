"""Parquet tables that may be larger than memory: pyarrow's writer and reader, some rows at a time.

Up to HELD bytes a table is one row group, the bytes of `pyarrow.parquet.write_table`; a larger one has a row group for
about each HELD bytes, cut where the caller's batches end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spin_core.errors import BadInput, one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

HELD = 64 << 20  # bytes of a row group: 50,000 rows of GSM8K
READ_ROWS, READ_BYTES = 1024, 16 << 20


def write_table(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write one table to `path`. The same batches give the same bytes. Raises OSError where the disk is full."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def groups() -> Iterator[list[pa.RecordBatch]]:
        held: list[pa.RecordBatch] = []
        size = 0
        for batch in batches:
            held.append(batch)
            size += batch.nbytes
            if size > HELD:
                yield held
                held, size = [], 0
        yield held

    with pq.ParquetWriter(path, schema) as file:
        for number, held in enumerate(groups()):
            if held or not number:
                file.write_table(pa.Table.from_batches(held, schema).combine_chunks())  # pages end where chunks do


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


def leaf_names(path: Path) -> list[str]:
    """As `column_names`, of nested columns each field's path, with dots. Raises BadInput naming the file."""
    with _opened(path) as file:
        return [file.schema.column(number).path for number in range(len(file.schema.names))]


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a readable parquet file ({one_line(error)}); make it again.") from error
