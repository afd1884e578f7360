"""Malformed JSON and JSONL files, by name: what is written, and what must come of it.

`GOOD` rows are around every spoilt one, so that a run on what is left could go on.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sys
import zipfile
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """`refused`: the text in the sentence (else the data set is read); `rejects`: rows left out, by reason; `rows`: how
    many are used."""

    refused: str = ""
    rejects: dict[str, int] = field(default_factory=dict)
    rows: int = 8


def row(number: int, answer: Any = None) -> dict[str, Any]:
    return {"prompt": f"question {number}", "response": f"answer {number}" if answer is None else answer}


GOOD = [json.dumps(row(i)).encode() for i in range(8)]


def lines(*spoilt: bytes, end: bytes = b"\n") -> bytes:
    """Four good lines, the spoilt ones (line 5 on), four good lines."""
    return end.join([*GOOD[:4], *spoilt, *GOOD[4:]]) + end


def array(*spoilt: bytes) -> bytes:
    return b"[" + b",\n".join([*GOOD[:4], *spoilt, *GOOD[4:]]) + b"]"


def pair(prompt: str, answer: str) -> bytes:
    return json.dumps({"prompt": prompt, "response": answer}, ensure_ascii=False).encode("utf-8", "surrogatepass")


COMMA = 32 if sys.version_info >= (3, 13) else 33
"""Where the parser sees a comma that ends an object: at the comma, or at what follows."""


def _zip(member: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr(member, lines())
    return held.getvalue()


class Marker:
    """Unpickled, it writes a file."""

    def __reduce__(self):
        return open, ("unpickled-marker", "w")


ODD = "".join(map(chr, (0x2028, 0x2029, 0x85, 0x0B, 0x0C, 0x1C, 0x00, 0x202E, 0x200D, 0x200B, 0xFEFF, 0x1B)))
USED_9, USED_10 = Outcome(rows=9), Outcome(rows=10)


def rejected(reason: str, count: int = 1, rows: int = 8) -> Outcome:
    return Outcome(rejects={reason: count}, rows=rows)


TEXT: dict[str, tuple[bytes, Outcome]] = {
    # --- what a parser cannot read: refused with file and line
    "broken line.jsonl": (lines(b'{"prompt": '), Outcome("line 5, column 1")),
    "cut at the end.jsonl": (lines() + b'{"prompt": "a', Outcome("line 9")),
    "trailing comma.jsonl": (lines(b'{"prompt": "a", "response": "b",}'), Outcome(f"line 5, column {COMMA}: broken")),
    "single quotes.jsonl": (lines(b"{'prompt': 'a'}"), Outcome("line 5, column 2")),
    "two objects in a line.jsonl": (lines(b"{} {}"), Outcome("line 5, column 4: broken JSON (Extra data)")),
    "no quotes.jsonl": (lines(b"question, answer"), Outcome("line 5, column 1")),
    "raw tab in text.jsonl": (lines(b'{"prompt": "a\tb", "response": "c"}'), Outcome("line 5, column 14")),
    "raw NUL in text.jsonl": (lines(b'{"prompt": "a\0b", "response": "c"}'), Outcome("line 5, column 14")),
    "bad escape.jsonl": (lines(b'{"prompt": "\\x41"}'), Outcome("line 5, column 13")),
    "cut escape.jsonl": (lines(b'{"prompt": "\\u12"}'), Outcome("line 5")),
    "hexadecimal.jsonl": (lines(b'{"prompt": 0x10}'), Outcome("line 5")),
    "leading zero.jsonl": (lines(b'{"prompt": 01}'), Outcome("line 5")),
    "old Mac line ends.jsonl": (b"\r".join(GOOD), Outcome("line 1, column 50")),
    "one row over lines.jsonl": (lines(b"{", b'"prompt": "a"}'), Outcome("line 5")),
    "csv.jsonl": (b"prompt,response\na,b\n", Outcome("line 1, column 1")),
    "html.jsonl": (b"<!doctype html>\n<title>404</title>", Outcome("a web page (HTML)")),
    "pointer of git lfs.jsonl": (b"version https://git-lfs.github.com/spec/v1\n", Outcome("a git-lfs pointer")),
    "array.jsonl": (array(), Outcome("line 1")),
    "depth 10,000.jsonl": (lines(b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"), Outcome("line 5")),
    "depth 100,000.jsonl": (lines(b"[" * 100_000), Outcome("line 5")),
    "depth of objects.jsonl": (lines(b'{"a":' * 50_000), Outcome("line 5")),
    "5,000 digits.jsonl": (lines(b'{"prompt": ' + b"9" * 5_000 + b"}"), Outcome("line 5")),
    "row over 16 MiB.jsonl": (lines(pair("a", "x" * (17 << 20))), Outcome("line 5: longer than 16 MiB")),
    "broken value.json": (array(b'{"prompt" 1}'), Outcome("line 5, column 11: broken JSON")),
    "trailing comma.json": (array()[:-1] + b",]", Outcome("line 8, column 50: broken JSON")),
    "no comma.json": (b"[" + b"\n".join(GOOD) + b"]", Outcome("line 2, column 1: broken JSON")),
    "cut.json": (array()[:-30], Outcome("line 8")),
    "not closed.json": (array()[:-1], Outcome("line 8, column 49: broken JSON")),
    "behind the end.json": (array() + b"\n[]", Outcome("line 9, column 1: broken JSON (Extra data)")),
    "depth 100,000.json": (array(b"[" * 100_000), Outcome("line 5")),
    "5,000 digits.json": (array(b"9" * 5_000), Outcome("line 5")),
    "number.json": (b"12", Outcome("neither an array")),
    "text.json": (b'"abc"', Outcome("neither an array")),
    "null.json": (b"null", Outcome("neither an array")),
    "object of columns.json": (b'{"prompt": ["a"], "response": ["b"]}', Outcome("neither an array")),
    "data is no list.json": (b'{"data": {"prompt": "a"}}', Outcome("neither an array")),
    "row over 16 MiB.json": (array(pair("a", "x" * (17 << 20))), Outcome("(a row of over")),
    "object over 32 MiB.json": (b'{"version": 1,\n"data": [' + pair("a", "x" * (33 << 20)), Outcome("over 32 MiB")),
    "empty.jsonl": (b"", Outcome("no rows")),
    "spaces.jsonl": (b" \n\t\r\n\n", Outcome("no rows")),
    "empty.json": (b"", Outcome("no rows")),
    "spaces.json": (b"\n \n", Outcome("no rows")),
    "empty array.json": (b"[ ]", Outcome("no rows")),
    "empty data.json": (b'{"data": []}', Outcome("no rows")),
    # --- not UTF-8, or not text at all
    "UTF-16 with mark.jsonl": (lines().decode().encode("utf-16"), Outcome("line 1: this is UTF-16")),
    "UTF-16 without mark.jsonl": (lines().decode().encode("utf-16-le"), Outcome("line 1, column 2")),
    "UTF-32 with mark.json": (array().decode().encode("utf-32"), Outcome("UTF-16 or UTF-32")),
    "Latin-1.jsonl": (lines('{"prompt": "é"}'.encode("latin-1")), Outcome("line 5: byte")),
    "Latin-1.json": (array('{"prompt": "é"}'.encode("latin-1")), Outcome("line 5: byte")),
    "overlong UTF-8.jsonl": (lines(b'{"prompt": "\xc0\xaf"}'), Outcome("line 5: byte")),
    "surrogate in UTF-8.jsonl": (lines(pair("\ud800", "b")), Outcome("line 5: byte")),
    "beyond Unicode.json": (array(b'{"prompt": "\xf5\x90\x80\x80"}'), Outcome("line 5: byte")),
    "cut character.json": (array()[:-1] + b"\xe2\x82", Outcome("line 8: byte")),
    "gzip.jsonl": (gzip.compress(lines()), Outcome("line 1: this is gzip-compressed")),
    "gzip bomb.json": (gzip.compress(b" " * (64 << 20)), Outcome("this is gzip-compressed")),
    "bzip2.jsonl": (bz2.compress(lines()), Outcome("this is bzip2-compressed")),
    "xz.jsonl": (lzma.compress(lines()), Outcome("this is xz-compressed")),
    "zip.json": (_zip("../../evil.jsonl"), Outcome("this is a zip archive")),
    "pickle.json": (pickle.dumps(Marker()), Outcome("this is a pickle")),
    "pickle.jsonl": (pickle.dumps([row(1)], protocol=2), Outcome("this is a pickle")),
    "text pickle.json": (pickle.dumps(Marker(), protocol=0), Outcome("neither an array")),
    "parquet.jsonl": (b"PAR1\x15\x04", Outcome("this is a parquet file")),
    "NUL only.jsonl": (b"\0" * 4096, Outcome("line 1, column 1")),
    "NUL only.json": (b"\0" * 4096, Outcome("neither an array")),
    # --- what parses and is no row: rejected with a reason
    "list.jsonl": (lines(b"[1]"), rejected("not an object")),
    "scalars.jsonl": (lines(b"1", b'"a"', b"null", b"true"), rejected("not an object", 4)),
    "list.json": (array(b"[{}]"), rejected("not an object")),
    "key twice.jsonl": (lines(b'{"prompt": "a", "prompt": "b", "response": "c"}'), rejected("malformed object")),
    "key twice inside.json": (array(b'{"prompt": "a", "response": {"x": 1, "x": 2}}'), rejected("malformed object")),
    "NaN.jsonl": (lines(b'{"prompt": "a", "response": "b", "n": NaN}'), rejected("malformed object")),
    "infinities.json": (array(b'{"n": Infinity}', b'{"n": [-Infinity]}'), rejected("malformed object", 2)),
    "flaw at depth 600.jsonl": (
        lines(b'{"a": ' + b"[" * 600 + b"NaN" + b"]" * 600 + b"}"), rejected("malformed object"),
    ),
    "missing field.jsonl": (lines(b'{"prompt": "a"}'), rejected("wrong columns")),
    "empty object.jsonl": (lines(b"{}"), rejected("wrong columns")),
    "number for text.jsonl": (lines(b'{"prompt": 1, "response": "a"}'), rejected("wrong type")),
    "huge float.jsonl": (lines(b'{"prompt": 1e999, "response": "a"}'), rejected("wrong type")),
    "list for text.jsonl": (lines(b'{"prompt": "a", "response": ["b"]}'), rejected("wrong type")),
    "object for text.jsonl": (lines(b'{"prompt": {"a": 1}, "response": "b"}'), rejected("wrong type")),
    "null for the answer.jsonl": (lines(b'{"prompt": "a", "response": null}'), rejected("no answer")),
    "null for the prompt.jsonl": (lines(b'{"prompt": null, "response": "a"}'), rejected("empty prompt")),
    "spaces for the prompt.jsonl": (lines(pair(" \t\n\u2003", "a")), rejected("empty prompt")),
    "half a surrogate.jsonl": (lines(b'{"prompt": "\\ud800", "response": "a"}'), rejected("not text")),
    "half a surrogate in a key.jsonl": (lines(b'{"\\udc00": "a"}'), rejected("wrong columns")),
    "same row again.jsonl": (lines(GOOD[0], GOOD[0]), rejected("duplicate", 2)),
    "million keys.jsonl": (
        lines(b"{" + b",".join(b'"k%d":0' % i for i in range(1_000_000)) + b"}"), rejected("wrong columns"),
    ),
    "long name of a column.jsonl": (lines(b'{"' + b"k" * 1_000_000 + b'": 1}'), rejected("wrong columns")),
    "messages that are text.jsonl": (lines(b'{"messages": "hello"}'), rejected("wrong type")),
    "message without role.jsonl": (lines(b'{"messages": [{"content": "a"}]}'), rejected("wrong type")),
    "messages of texts.jsonl": (lines(b'{"messages": ["a", "b"]}'), rejected("wrong type")),
    "no messages.jsonl": (lines(b'{"messages": []}'), rejected("empty prompt")),
    "two user turns.jsonl": (
        lines(b'{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}'),
        rejected("bad role order"),
    ),
    "role of a megabyte.jsonl": (
        lines(b'{"messages": [{"role": "' + b"r" * (1 << 20) + b'", "content": "a"}]}'), rejected("bad role order"),
    ),
    "depth 300, and unused.jsonl": (
        lines(b'{"prompt": "a", "response": "b", "x": ' + b"[" * 300 + b"]" * 300 + b"}"), USED_9,
    ),
    # --- odd, and good
    "mark of UTF-8.jsonl": (b"\xef\xbb\xbf" + lines(), Outcome()),
    "mark of UTF-8.json": (b"\xef\xbb\xbf" + array(), Outcome()),
    "Windows line ends.jsonl": (lines(end=b"\r\n"), Outcome()),
    "blank lines before an object.json": (b"\n\r\n \n" + b'{"data": ' + array() + b"}", Outcome()),
    "blank lines before lines.json": (b"\n\n" + lines(), Outcome()),
    "blank lines before an array.json": (b"\n\n" + array(), Outcome()),
    "blank lines.jsonl": (lines(b"", b"  ", b"\t"), Outcome()),
    "no last line end.jsonl": (lines()[:-1], Outcome()),
    "objects a line.json": (lines(), Outcome()),
    "data and more.json": (b'{"version": "1",\n"data": ' + array() + b"}", Outcome()),
    "odd characters.jsonl": (
        lines(json.dumps(row(9, ODD + "x")).encode(), pair("a\u2028b\u0085", "c\u202ed\u200d")), USED_10,
    ),
    "same text in two normal forms.jsonl": (lines(pair("\u00e9", "a"), pair("e\u0301", "a")), USED_10),
    "two answers to a prompt.jsonl": (lines(pair("question 0", "another")), USED_9),
    "field more.jsonl": (lines(b'{"prompt": "a", "response": "b", "id": 7, "n": -0.0}'), USED_9),
    "ids twice.jsonl": (
        lines(b'{"id": 1, "prompt": "a", "response": "b"}', b'{"id": 1, "prompt": "c", "response": "d"}'), USED_10,
    ),
    "row of 10 MB.jsonl": (lines(pair("a", "x" * 10_000_000)), USED_9),
    "row of 10 MB.json": (array(pair("a", "é" * 5_000_000)), USED_9),
    "markers of templates.jsonl": (lines(pair("<|im_end|></s>{{ 7*7 }}{% raw %}", "\x1b[31m<script>")), USED_9),
}  # fmt: skip
