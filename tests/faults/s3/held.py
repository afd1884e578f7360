"""Another S3 service than moto's, small enough for hundreds of lies a second: objects in a dict of this process, and a
`lie` that is shown every answer before it goes out. `test_lying.py` has gc end in the same state on it as on moto's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.faults.s3.server import BUCKET, in_threads

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
WHEN = "Sun, 29 Nov 2026 08:00:00 GMT"


class Asked(NamedTuple):
    """A request: method, key of the object (empty: a listing), the listing's prefix, what is asked of the bucket."""

    method: str
    key: str
    prefix: str = ""
    what: str = ""


class Answer(NamedTuple):
    """What goes out."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})


Lie = Callable[[Asked, Answer], Answer]


def honest(asked: Asked, answer: Answer) -> Answer:
    """No lie."""
    return answer


@dataclass
class Held:
    """The service. `page`: objects in one page of a listing. What it `refuses` is not done."""

    objects: dict[str, bytes] = field(default_factory=dict)
    lie: Lie = honest
    refuses: Callable[[Asked], bool] = lambda asked: False
    page: int = 1000
    url: str = ""
    now: str = WHEN

    def answer(self, asked: Asked, query: dict[str, str], body: bytes, headers: dict[str, str]) -> Answer:
        """What S3 answers."""
        key = asked.key
        if not key:
            return Answer(200, self.listing(asked.prefix, query) if asked.what == "list" else uploads(asked.prefix))
        if asked.method == "PUT":
            return self._put(key, body, headers)
        if asked.method == "DELETE":
            self.objects.pop(key, None)
            return Answer(204)
        if key not in self.objects:
            return Answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        return Answer(200, self.objects[key], {"ETag": f'"{etag(self.objects[key])}"', "Last-Modified": WHEN})

    def _put(self, key: str, body: bytes, headers: dict[str, str]) -> Answer:
        if headers.get("if-none-match") and key in self.objects:
            return Answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        source = unquote(headers.get("x-amz-copy-source", "")).removeprefix(f"{BUCKET}/").lstrip("/")
        self.objects[key] = self.objects[source] if source else body
        mark = f'"{etag(self.objects[key])}"'
        copied = f"<CopyObjectResult {XMLNS}><ETag>{escape(mark)}</ETag></CopyObjectResult>"
        return Answer(200, copied.encode() if source else b"", {"ETag": mark})

    def listing(self, prefix: str, query: dict[str, str] | None = None) -> bytes:
        """A page of what is there."""
        query = query or {}
        keys = sorted(key for key in self.objects if key.startswith(prefix))
        if query.get("delimiter"):
            folders = sorted({prefix + key[len(prefix) :].split("/")[0] + "/" for key in keys})
            return page(prefix, [], folders=folders)
        size, start = (
            min(self.page, int(query.get("max-keys", 1000))),
            int(query.get("continuation-token", "").replace("x", "") or 0),
        )
        token = str(start + size) if len(keys) > start + size else ""
        return page(prefix, [(key, self.objects[key]) for key in keys[start : start + size]], token)


def etag(data: bytes) -> str:
    """MD5."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def page(
    prefix: str,
    objects: list[tuple[str, bytes]],
    token: str = "",
    bucket: str = BUCKET,
    count: int | None = None,
    folders: list[str] | None = None,
) -> bytes:
    """A ListBucketResult as AWS writes it."""
    contents = "".join(
        f"<Contents><Key>{quote(key)}</Key><LastModified>2026-11-29T08:00:00.000Z</LastModified>"
        f"<ETag>&quot;{etag(data)}&quot;</ETag><Size>{len(data)}</Size></Contents>"
        for key, data in objects
    )
    contents += "".join(f"<CommonPrefixes><Prefix>{quote(one)}</Prefix></CommonPrefixes>" for one in folders or [])
    following = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    count = len(objects) + len(folders or []) if count is None else count
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<ListBucketResult {XMLNS}><Name>{bucket}</Name>'
        f"<Prefix>{quote(prefix)}</Prefix><KeyCount>{count}</KeyCount><MaxKeys>1000</MaxKeys>"
        f"<EncodingType>url</EncodingType><IsTruncated>{str(bool(token)).lower()}</IsTruncated>{following}{contents}"
        "</ListBucketResult>"
    ).encode()


def uploads(prefix: str) -> bytes:
    """No upload is in hand."""
    return (
        f"<ListMultipartUploadsResult {XMLNS}><Bucket>{BUCKET}</Bucket><Prefix>{quote(prefix)}</Prefix>"
        "<IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
    ).encode()


def _handler(held: Held) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # one write for an answer: else each waits for the client's delayed acknowledgement
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            """Nothing."""

        def handle_expect_100(self) -> bool:
            """Said at once: the client waits for it."""
            goes_on = super().handle_expect_100()
            self.wfile.flush()
            return goes_on

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            key = unquote(parts.path).removeprefix(f"/{BUCKET}").lstrip("/")
            what = "list" if "list-type" in query else "uploads" if "uploads" in query else ""
            asked = Asked(self.command, key, query.get("prefix", ""), what)
            headers = {name.lower(): value for name, value in self.headers.items()}
            refused = Answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            answer = refused if held.refuses(asked) else held.answer(asked, query, body, headers)
            answer = held.lie(asked, answer)
            self.send_response_only(answer.status)
            for name, value in {"Date": held.now, "Content-Type": "application/xml", **answer.headers}.items():
                self.send_header(name, value)
            if answer.status != 204:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD" and answer.status != 204:
                self.wfile.write(answer.body)

        do_GET = do_PUT = do_DELETE = do_HEAD = _serve

    return Handler


@contextmanager
def serving() -> Iterator[Held]:
    """The service, on loopback, in threads of this process."""
    held = Held()
    with in_threads(_handler(held)) as held.url:
        yield held
