"""Token ids on disk: an uncompressed Arrow file that is mapped into memory, so that every process of a machine reads
the same pages and none holds them.

Not a format of its own: pyarrow's IPC file, columns `id` (text) and lists of int32, batches of ROWS rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spin_core.errors import BadInput, one_line

if TYPE_CHECKING:
    import numpy as np

ROWS = 4096
FILES = {"train": "train_tokens.arrow", "test": "test_tokens.arrow"}


def write(path: Path, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> int:
    """Write rows `(id, ids of each of columns)`; how many. The same rows give the same bytes."""
    import pyarrow as pa

    schema = pa.schema([("id", pa.string()), *((name, pa.list_(pa.int32())) for name in columns)])
    count, left = 0, iter(rows)
    with pa.ipc.new_file(path, schema) as file:
        while part := list(islice(left, ROWS)):
            arrays = [pa.array(column, kind.type) for column, kind in zip(zip(*part, strict=True), schema, strict=True)]
            file.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            count += len(part)
    return count


class _Part(NamedTuple):
    """One batch: of each column where its rows begin, and all their ids."""

    first: int
    columns: dict[str, tuple[np.ndarray, np.ndarray]]


class TokenFile:
    """The rows of one file, read where they are used. `ids` are in memory: 60 bytes each."""

    def __init__(self, path: Path):
        """Raises BadInput where it is no such file."""
        import pyarrow as pa

        self.ids: list[str] = []
        self._parts: list[_Part] = []
        try:
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
                self.columns = [name for name in file.schema.names if name != "id"]
                for number in range(file.num_record_batches):
                    batch = file.get_batch(number)
                    batch.validate(full=True)  # a stranger's offsets may lie
                    self._parts.append(
                        _Part(len(self.ids), {name: _lists(batch.column(name)) for name in self.columns})
                    )
                    self.ids += batch.column("id").to_pylist()
        except (pa.ArrowException, OSError, KeyError, AttributeError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: not a readable file of tokens ({one_line(error)}); make it again.") from error

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """The ids int32 [T] of each column, mapped; not to be written to."""
        part = self._parts[bisect_right(self._parts, index, key=attrgetter("first")) - 1]
        at = index - part.first
        return {name: values[starts[at] : starts[at + 1]] for name, (starts, values) in part.columns.items()}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return map(self.row, range(len(self)))

    def lengths(self, name: str) -> np.ndarray:
        """How many ids each row has in a column, int64."""
        import numpy as np

        parts = [np.diff(part.columns[name][0]) for part in self._parts]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _lists(column: Any) -> tuple[np.ndarray, np.ndarray]:
    return column.offsets.to_numpy(), column.values.to_numpy()
