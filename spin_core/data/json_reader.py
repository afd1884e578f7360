"""Rows of .jsonl and .json files, a row at a time whatever the file's size.

What cannot be parsed is BadInput naming line and column; what parses but is no usable object (not an object, a key
twice, NaN) is a record with a `reject` reason.
Covered: byte-order marks, CRLF, blank lines, U+2028 and NUL inside strings. Not covered: encodings other than UTF-8.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from spin_core.data.raw_record import RawRecord
from spin_core.errors import BadInput

# A row without an end would be read whole, and an empty list of two characters becomes 64 bytes: 16 MiB are below 1 GB
# of objects. The longest rows of public SFT sets are below 2 MB.
LONGEST_LINE = 16 << 20
# {"data": […]} and other objects are read whole.
LONGEST_OBJECT = 32 << 20
TOO_LONG = f"a row of over {LONGEST_LINE >> 20} MiB"
SPACE = " \t\n\r"
# What begins with these is none of the texts that it is named for, whatever a parser would say of it.
MAGIC = {
    b"\x1f\x8b": "gzip-compressed",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"BZh": "bzip2-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\xff\xfe": "UTF-16 or UTF-32 text",
    b"\xfe\xff": "UTF-16 text",
    b"\0\0\xfe\xff": "UTF-32 text",
}


def read_jsonl(path: Path, name: str) -> Iterator[RawRecord]:
    """One object a line. `name` becomes `RawRecord.file`."""
    start = 0
    with path.open("rb") as file:
        _check_kind(file, path)
        for number in range(1, 1 << 62):
            raw = file.readline(LONGEST_LINE + 1)
            if not raw:
                return
            if len(raw) > LONGEST_LINE:
                raise BadInput(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MiB; is it one object a line?")
            text = _text(raw, path, number, start).removeprefix("\ufeff" if number == 1 else "")
            start += len(raw)
            if text.strip():
                yield _record(name, number, _parse(text, path, number))


def read_json(path: Path, name: str) -> Iterator[RawRecord]:
    """An array, {"data": [array]}, or, in spite of the name, one object a line."""
    with path.open("rb") as file:
        _check_kind(file, path)
        head = file.readline(LONGEST_LINE + 1)
        while head and not head.removeprefix(b"\xef\xbb\xbf").strip():  # blank lines
            head = file.readline(LONGEST_LINE + 1)
        begins = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if begins == b"{" and file.read(1 << 16).strip():
            try:
                json.loads(head.decode("utf-8-sig"))
            except (ValueError, RecursionError):
                pass  # an object spread over lines, or a broken line: the whole file's parser says which
            else:
                yield from read_jsonl(path, name)
                return
        file.seek(0)
        if begins != b"{":
            for number, value in enumerate(_Array(file, path), 1):
                yield _record(name, number, value)
            return
        raw = file.read(LONGEST_OBJECT + 1)
    if len(raw) > LONGEST_OBJECT:
        raise BadInput(
            f"{path}: an object of over {LONGEST_OBJECT >> 20} MiB; write one row a line, and name the file .jsonl."
        )
    content = _parse(_text(raw, path, 0, 0).removeprefix("\ufeff"), path, 0)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise BadInput(f"{path}: neither an array of objects nor {{'data': [...]}} nor one object a line; make it one.")
    for number, value in enumerate(content["data"], 1):
        yield _record(name, number, value)


class _Array:
    """The values of a JSON array, of which only the one at hand is in memory. Iterating raises BadInput."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.text, self.at = "", 0
        self.line, self.column, self.bytes = 1, 1, 0  # where `text` begins
        self.ended = False
        self.utf8 = codecs.getincrementaldecoder("utf-8")()
        self.json = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_constant)

    def __iter__(self) -> Iterator[Any]:
        self._more(1 << 16)
        self.text = self.text.removeprefix("\ufeff")
        opened = self._next()
        if not opened:
            return
        if opened != "[":
            raise BadInput(
                f"{self.path}: neither an array of objects nor {{'data': [...]}} nor one object a line; make it one."
            )
        self.at += 1
        following = self._next()
        while following != "]":
            yield self._value()
            following = self._next()
            if following == ",":
                self.at += 1
                following = "value"
            elif following != "]":
                raise self._broken("Expecting ',' delimiter", self.at)
        self.at += 1
        if self._next():
            raise self._broken("Extra data", self.at)

    def _next(self) -> str:
        """The next character that is no space, empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in SPACE:
                self.at += 1
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self._more(1 << 20)

    def _value(self) -> Any:
        size = 1 << 16
        self._next()
        while True:
            try:
                value, end = self.json.raw_decode(self.text, self.at)
                if end - self.at > LONGEST_LINE:
                    raise self._broken(TOO_LONG, self.at)
                if end < len(self.text) or self.ended:  # else a number may go on
                    self.at = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended:
                    raise self._broken(error.msg, error.pos) from error
            except (ValueError, RecursionError) as error:
                raise self._broken(str(error), self.at) from error
            if len(self.text) - self.at > LONGEST_LINE:
                raise self._broken(TOO_LONG, self.at)
            self._more(size)
            size = min(2 * size, LONGEST_LINE)

    def _more(self, size: int) -> None:
        """Drop what was read, and read on."""
        self.line, self.column = self._place(self.at)
        self.text, self.at = self.text[self.at :], 0
        raw = self.file.read(size)
        self.ended = not raw
        try:
            self.text += self.utf8.decode(raw, final=self.ended)
        except UnicodeDecodeError as error:
            held = error.object
            good = held[: error.start].decode()
            line = self.line + self.text.count("\n") + good.count("\n")
            raise _not_utf8(self.path, line, self.bytes + len(raw) - len(held) + error.start) from error
        self.bytes += len(raw)

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


def _text(raw: bytes, path: Path, line: int, start: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = line or raw.count(b"\n", 0, error.start) + 1
        raise _not_utf8(path, line, start + error.start) from error


def _not_utf8(path: Path, line: int, byte: int) -> BadInput:
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
    waiting = [iter((value,))]
    while waiting:
        for one in waiting[-1]:
            if isinstance(one, _Flaw):
                return one
            if isinstance(one, dict | list):
                waiting.append(iter(one.values() if isinstance(one, dict) else one))
                break
        else:
            waiting.pop()
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
