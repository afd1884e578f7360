"""Rows of .jsonl and .json files, compressed or not, a row at a time whatever the file's size.

What cannot be parsed is BadInput naming line and column; what parses but is no usable object (not an object, a key
twice, NaN) is a record with a `reject` reason. Where a file is not UTF-8, UnicodeDecodeError is raised, which
`not_utf8` makes a sentence of.
Covered: byte-order marks, CRLF, blank lines, U+2028 and NUL inside strings. Not covered: encodings other than UTF-8.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from spin_core.data.packed import opened
from spin_core.data.rows import RawRecord
from spin_core.errors import BadInput

# A row without an end would be read whole, and an empty list of two characters becomes 64 bytes: 16 MiB are below 1 GB
# of objects. The longest rows of public SFT sets are below 2 MB.
LONGEST_LINE = 16 << 20
# {"data": […]} and other objects are read whole.
LONGEST_OBJECT = 32 << 20
SPACE = re.compile(r"[ \t\n\r]*")
# What begins with these is none of the texts that it is named for, whatever a parser would say of it.
MAGIC = {
    b"\x1f\x8b": "gzip-compressed",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), "a pickle"),
    b"\xff\xfe": "UTF-16 or UTF-32 text",
    b"\xfe\xff": "UTF-16 text",
    b"\0\0\xfe\xff": "UTF-32 text",
}


def read_jsonl(path: Path, name: str, packed: str = "") -> Iterator[RawRecord]:
    """One object a line. `name` becomes `RawRecord.file`; `packed`: how the file is compressed."""
    with opened(path, packed) as file:
        _check_kind(file, path)
        for number, raw in enumerate(_lines(file), 1):
            if len(raw) > LONGEST_LINE:
                raise BadInput(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB; is it one object a line?")
            text = raw.decode().removeprefix("\ufeff" if number == 1 else "")
            if text.strip():
                yield _record(name, number, _parse(text, path, number))


def read_json(path: Path, name: str, packed: str = "") -> Iterator[RawRecord]:
    """An array, {"data": [array]}, or, in spite of the name, one object a line."""
    with opened(path, packed) as file:
        _check_kind(file, path)
        first = next((text for line in _lines(file) if (text := line.removeprefix(codecs.BOM_UTF8).strip())), b"")
        if first.startswith(b"{") and file.read(1 << 16).strip():
            try:
                json.loads(first.decode())
            except (ValueError, RecursionError):
                pass  # an object spread over lines, or a broken line: the whole file's parser says which
            else:
                yield from read_jsonl(path, name, packed)
                return
        file.seek(0)
        values = _data_of_object(file, path) if first.startswith(b"{") else _Array(file, path)
        for number, value in enumerate(values, 1):
            yield _record(name, number, value)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """What is longer than LONGEST_LINE comes in pieces that are one byte longer."""
    return iter(partial(file.readline, LONGEST_LINE + 1), b"")


def _data_of_object(file: BinaryIO, path: Path) -> list[Any]:
    raw = file.read(LONGEST_OBJECT + 1)
    if len(raw) > LONGEST_OBJECT:
        raise BadInput(
            f"{path}: an object of over {LONGEST_OBJECT >> 20} MiB; write one row a line, and name the file .jsonl."
        )
    content = _parse(raw.decode().removeprefix("\ufeff"), path, 0)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise _no_rows(path)
    data: list[Any] = content["data"]
    return data


class _Array:
    """The values of a JSON array, of which only the one at hand is in memory. Iterating raises BadInput."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = io.TextIOWrapper(file, "utf-8-sig", newline=""), path
        self.text, self.at, self.ended = "", 0, False
        self.line, self.column = 1, 1  # where `text` begins
        self.json = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_constant)

    def __iter__(self) -> Iterator[Any]:
        opened = self._next()
        if not opened:
            return
        if opened != "[":
            raise _no_rows(self.path)
        self.at += 1
        more = self._next() != "]"
        while more:
            yield self._value()
            following = self._next()
            if following not in (",", "]"):
                raise self._broken("Expecting ',' delimiter", self.at)
            more = following == ","
            self.at += more
        self.at += 1
        if self._next():
            raise self._broken("Extra data", self.at)

    def _next(self) -> str:
        """The next character that is no space, empty at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more(1 << 16)

    def _value(self) -> Any:
        size = 1 << 16
        self._next()
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.at)
                if end - self.at <= LONGEST_LINE and (end < len(self.text) or self.ended):  # else a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self._broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error), self.at) from error
            if len(self.text) - self.at > LONGEST_LINE:
                raise self._broken(f"a row of over {LONGEST_LINE >> 20} MiB", self.at)
            self._more(size)
            size = min(2 * size, LONGEST_LINE)

    def _more(self, size: int) -> None:
        """Drop what was read, and read on."""
        self.line, self.column = self._place(self.at)
        more = self.file.read(size)
        self.text, self.at, self.ended = self.text[self.at :] + more, 0, not more

    def _place(self, at: int) -> tuple[int, int]:
        lines, last = self.text.count("\n", 0, at), self.text.rfind("\n", 0, at)
        return self.line + lines, at - last if lines else self.column + at

    def _broken(self, why: str, at: int) -> BadInput:
        line, column = self._place(at)
        return BadInput(f"{self.path}, line {line}, column {column}: broken JSON ({why}); fix or remove this line.")


def _check_kind(file: BinaryIO, path: Path) -> None:
    head = file.read(8)
    file.seek(0)
    kind = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "")
    if kind:
        what = "save it as UTF-8" if kind.startswith("UTF") else "unpack or convert it, or name it for what it is"
        raise BadInput(f"{path}, line 1: this is {kind}, not JSON; {what}.")


def _no_rows(path: Path) -> BadInput:
    return BadInput(f"{path}: neither an array of objects nor {{'data': [...]}} nor one object a line; make it one.")


def not_utf8(path: Path, packed: str = "") -> BadInput:
    """Names the first byte of the (unpacked) file that is no text."""
    decoder, line, byte = codecs.getincrementaldecoder("utf-8")(), 1, 0
    with opened(path, packed) as file:
        for raw in chain(_lines(file), [b""]):
            try:
                decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:  # of `raw`, and what was left of a character before it
                byte += len(raw) - len(error.object) + error.start
                break
            byte += len(raw)
            line += raw.endswith(b"\n")
    return BadInput(f"{path}, line {line}: byte {byte} of the file is not UTF-8; save the file as UTF-8.")


class _Flaw(str):
    """Stands where something parses that JSON does not allow; says what."""


def _unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any] | _Flaw:
    fields = dict(items)
    return fields if len(fields) == len(items) else _Flaw("a key is there twice")


def _constant(name: str) -> _Flaw:
    return _Flaw(f"{name} is not JSON")


def _flaw_in(value: Any) -> _Flaw | None:
    """The first flaw of a row; without recursion, because the parser takes deeper rows than Python's stack does."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, _Flaw):
            return one
        if isinstance(one, dict | list):
            waiting.extend(reversed(one.values() if isinstance(one, dict) else one))
    return None


def _parse(text: str, path: Path, line: int) -> Any:
    """The JSON value, with a `_Flaw` where it breaks the rules. `line` 0: the text is the whole file."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_constant)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}, column {error.colno}"
        raise BadInput(f"{path}, {place}: broken JSON ({error.msg}); fix or remove this line.") from error
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits, or brackets nested too deep
        place = f", line {line}" if line else ""
        raise BadInput(f"{path}{place}: JSON that cannot be read ({error}); remove this row.") from error


def _record(name: str, line: int, value: Any) -> RawRecord:
    flaw = _flaw_in(value)
    if flaw is not None:
        return RawRecord(name, line, {}, "malformed object", str(flaw))
    if not isinstance(value, dict):
        return RawRecord(name, line, {}, "not an object", f"a JSON {type(value).__name__}")
    return RawRecord(name, line, value)
