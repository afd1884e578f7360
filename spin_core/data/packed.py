"""A file of text, unpacked while it is read where its name says that it is compressed (.gz, .bz2, .zst).

Not for tables: their decoder unpacks by itself (`spin_core/data/sandbox/decode_child.py`, whose limits these are).
In memory is what is asked for and pyarrow's own buffers; zstd windows over 128 MiB are refused by its library.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO

from spin_core.errors import BadInput, one_line


def opened(path: Path, packed: str) -> BinaryIO:
    """The file's bytes, unpacked if `packed` names a compression. Reading raises BadInput for what cannot be unpacked,
    or unpacks to more than files of rows do."""
    if not packed:
        return path.open("rb")
    unpacked: Any = io.BufferedReader(_Unpacked(path, packed), 1 << 16)
    return unpacked  # type: ignore[no-any-return]


class _Unpacked(io.RawIOBase):
    """Can go back to the beginning, and nowhere else."""

    def __init__(self, path: Path, packed: str) -> None:
        from spin_core.data.sandbox.decode_child import FREE, RATIO, ROW

        self._path, self._packed, self._row = path, packed, ROW
        self._allowed = FREE + RATIO * path.stat().st_size
        self._begin()

    def _begin(self) -> None:
        import pyarrow as pa

        self._file = self._path.open("rb")  # the stream before has closed its own
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, "r"), self._packed)
        self._at = self._counted = 0

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            raise BadInput(
                f"{self._path}: cannot be unpacked as {self._packed} ({one_line(error)}); copy it again, or name it "
                "for what it is."
            ) from None
        self._at += len(data)
        self._counted += len(data) + self._row * data.count(b"\n")
        if self._counted > self._allowed:
            raise BadInput(
                f"{self._path}: it unpacks to over {self._allowed >> 20} MiB, which is far more than text does; is it "
                "made to fill memory? If not, unpack it, or write several files."
            )
        buffer[: len(data)] = data
        return len(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        if (offset, whence) != (0, 0):
            raise io.UnsupportedOperation("only to the beginning")
        self._begin()
        return 0

    def close(self) -> None:
        self._stream.close()
        self._file.close()
        super().close()
