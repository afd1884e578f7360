"""A real S3 server on loopback, a process of its own, and a proxy before it that records requests and makes them fail.

The server is moto's, which a `pip install` brings. At night every test runs against Ceph's gateway too (`ceph.py`),
where that is installed; SPINLOOP_TEST_S3=ceph takes it alone.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.faults.fault import LEVEL
from tests.faults.s3 import ceph

BUCKET = "spinloop-test"
SERVERS = os.environ.get("SPINLOOP_TEST_S3", "moto" if LEVEL == "pr" else "moto ceph").split()
KEYS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-secret-that-no-record-has",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
HOP = {"connection", "transfer-encoding", "keep-alive", "expect"}


@dataclass(frozen=True)
class S3Request:
    """One request as it came: method, path with the bucket, query; whether it has a condition; who signed it."""

    method: str
    path: str
    query: str
    conditional: bool = False
    access_key: str = ""

    @property
    def part(self) -> bool:
        """Whether it uploads a part."""
        return self.method == "PUT" and "partNumber=" in self.query


@dataclass(frozen=True)
class Refusal:
    """An answer that is not the server's; `text`: its whole body in place of the code's."""

    status: int
    code: str = "Meddled"
    more: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    text: str = ""

    @property
    def body(self) -> bytes:
        error = f"<Error><Code>{self.code}</Code><Message>by a test</Message>{self.more}</Error>"
        return (self.text or error).encode()


Meddle = Callable[[S3Request], int | bytes | Refusal | None]
"""Is shown each request before it is passed on; a status, a refusal, or a body with status 200 answers it instead."""


@dataclass
class Proxy:
    """Passes requests on to the server. `meddle` may refuse them; `dropped` headers do not arrive."""

    target: str
    url: str = ""
    requests: list[S3Request] = field(default_factory=list)
    meddle: Meddle = lambda request: None
    dropped: set[str] = field(default_factory=set)
    passing: set[int] = field(default_factory=set)
    """The threads whose requests are on their way to the server."""

    def settle(self) -> None:
        """Wait until nothing is on its way: what a killed process had sent still arrives."""
        until = time.monotonic() + 60
        while self.passing and time.monotonic() < until:
            time.sleep(0.01)
        assert not self.passing, "the server does not answer"

    def parts(self) -> int:
        """How many parts were sent since the last `forget`."""
        return sum(one.part for one in self.requests)

    def forget(self) -> None:
        """Begin to record anew, and meddle no more."""
        self.requests, self.meddle, self.dropped = [], lambda request: None, set()


def _instead(said: int | bytes | Refusal) -> tuple[int, dict[str, str], bytes]:
    if isinstance(said, bytes):
        return 200, {}, said
    refusal = Refusal(said) if isinstance(said, int) else said
    return refusal.status, refusal.headers, refusal.body


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    target = urlsplit(proxy.target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else an answer's second write waits for the client's delayed acknowledgement

        def log_message(self, *_: object) -> None:
            """Nothing: `requests` has it."""

        def _pass(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if len(body) < length:  # of a client that was killed
                self.close_connection = True
                return
            path, _, query = self.path.partition("?")
            signed = re.search(r"Credential=([^/]+)", self.headers.get("Authorization", ""))
            request = S3Request(self.command, path, query, "If-None-Match" in self.headers, signed[1] if signed else "")
            proxy.passing.add(threading.get_ident())
            try:
                self._pass_on(request, body)
            finally:
                proxy.passing.discard(threading.get_ident())

        def _pass_on(self, request: S3Request, body: bytes) -> None:
            proxy.requests.append(request)
            if (said := proxy.meddle(request)) is not None:
                self._answer(*_instead(said))
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP | proxy.dropped}
            upstream = http.client.HTTPConnection(target.hostname or "", target.port or 80, timeout=60)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in headers.items():
                    upstream.putheader(name, value)
                upstream.endheaders(body or None)
                answer = upstream.getresponse()
                self._answer(answer.status, dict(answer.getheaders()), answer.read())
            except OSError:
                self.close_connection = True
            finally:
                upstream.close()

        def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in HOP | {"content-length"}:
                    self.send_header(name, value)
            length = headers.get("Content-Length", headers.get("content-length")) if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    return Handler


@contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy in threads of this process."""
    proxy = Proxy(target)
    with in_threads(_handler(proxy)) as proxy.url:
        yield proxy


@contextmanager
def in_threads(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on loopback, in threads of this process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that was killed
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def served(kind: str) -> Iterator[str]:
    """The address of an S3 server: moto's or Ceph's."""
    pytest.importorskip("moto", reason="moto is not installed: pip install -e '.[dev]'")
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -e '.[s3]'")
    if kind == "ceph":
        with ceph.served(KEYS["AWS_ACCESS_KEY_ID"], KEYS["AWS_SECRET_ACCESS_KEY"]) as url:
            yield url
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, process)
        yield url
    finally:
        process.kill()
        process.wait()


def _await(url: str, process: subprocess.Popen) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            opener.open(f"{url}/moto-api/", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail("the S3 server did not come up in 120 s")


def part_numbers(requests: list[S3Request]) -> list[int]:
    """The numbers of the parts that were sent."""
    return [int(match[1]) for one in requests if one.part and (match := re.search(r"partNumber=(\d+)", one.query))]
