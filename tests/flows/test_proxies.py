"""Proxies of the environment: what is on this machine is asked directly, and what cannot be used is one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import proxies
from spin_core.errors import BadInput
from tests.hub.hub_home import environment
from tests.hub.hub_server import start

ROOT = Path(__file__).parents[2]
VARIABLES = [form for name in ("http", "https", "all", "no") for form in (f"{name}_proxy", f"{name}_proxy".upper())]
EMPTY = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><KeyCount>0</KeyCount></ListBucketResult>'


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of this machine's; what a test or `main` sets is taken back."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def recorded() -> Iterator[tuple[str, list[str]]]:
    """A server that takes what it is sent as a proxy would, or as an empty bucket: its address, and the requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            self.send_response(404 if self.command == "HEAD" else 200)
            self.send_header("Content-Length", str(len(EMPTY)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(EMPTY)

        do_POST = do_PUT = do_HEAD = do_CONNECT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "given, hosts",
    [
        ({}, None),
        ({"NO_PROXY": "a.org"}, "a.org"),
        ({"HTTP_PROXY": "p:1"}, "localhost,127.0.0.1,::1"),
        ({"all_proxy": "p:1", "NO_PROXY": "a.org, localhost"}, "a.org,localhost,127.0.0.1,::1"),
        ({"HTTPS_PROXY": "p:1", "NO_PROXY": "a.org", "no_proxy": "b.org"}, "b.org,localhost,127.0.0.1,::1"),
        ({"HTTP_PROXY": "p:1", "NO_PROXY": "*"}, "*"),
    ],
)
def test_loopback_is_added_to_the_hosts_that_are_in_force(monkeypatch, given, hosts) -> None:
    """Catches a list of the user's that is lost: a client reads the small name first, and `*` only where it stands
    alone; and settings where there is no proxy, with which macOS' own are forgotten."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    proxies.keep_loopback_direct()
    proxies.keep_loopback_direct()
    named = {os.environ.get(name) for name in ("NO_PROXY", "no_proxy")} - {None}
    assert named == ({hosts} if hosts else set())


@pytest.mark.parametrize(
    "given, message",
    [
        ({"ALL_PROXY": "socks5://me:secret@p:1"}, "ALL_PROXY: a SOCKS proxy needs the package socksio"),
        ({"https_proxy": "SOCKS5H://me:secret@p:1"}, "HTTPS_PROXY: a SOCKS proxy needs the package socksio"),
        ({"HTTP_PROXY": "ftp://me:secret@p:1"}, "HTTP_PROXY: this is no address of a proxy"),
        ({"HTTP_PROXY": "http://p:port"}, "HTTP_PROXY: this is no address of a proxy"),
        ({"HTTP_PROXY": "p:1", "NO_PROXY": "[::1]"}, "NO_PROXY: [::1]"),
    ],
)
def test_proxy_that_cannot_be_used_is_one_sentence(spinloop, tiny, monkeypatch, tmp_path, given, message) -> None:
    """Catches httpx's traceback about `socksio` or a port, and a password in the sentence."""
    pytest.importorskip("httpx")
    monkeypatch.setitem(sys.modules, "socksio", None)  # also where it is installed
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    code, out, err = spinloop("run", tiny, "--store", tmp_path / "store")
    assert code == 2 and err.startswith(f"spinloop: {message}") and err.count("\n") == 1 and not out, err
    assert "secret" not in err
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    proxies.check()


def test_proxy_that_works_is_no_error(monkeypatch) -> None:
    """Catches a check that refuses what the clients take."""
    for address in ("p:3128", "http://p", "https://me:secret@p:1"):
        monkeypatch.setenv("HTTPS_PROXY", address)
        proxies.check()
    monkeypatch.setenv("ALL_PROXY", "socks4://p")
    with pytest.raises(BadInput):
        proxies.check()


ASK = """
import json, os, sys
from contextlib import suppress
from pathlib import Path
from flows.cli.__main__ import main
with suppress(SystemExit):
    main(["store", "ls", "--store", "s3://bucket/prefix"])
from flows.server.embedded import answers
from flows.server.settings import configured_server
from prefect.client.orchestration import get_client
from spin_core.sources.resolve import resolve
url = configured_server()
assert answers(url), url
with get_client(sync_client=True) as client:
    version = client.api_version()
commit = resolve("acme/good", "model", "", Path("/")).hub
print(json.dumps([version, commit]))
"""


def test_nothing_on_this_machine_is_asked_through_a_proxy(server, recorded, tmp_path) -> None:
    """Catches a Prefect server, hub or S3 service on loopback that is looked for behind the company's proxy."""
    proxy, through = recorded
    hub, hub_server = start()
    hub.add("models/acme/good", {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w"})
    env = environment(tmp_path, hub.url)  # at 127.0.0.1, and its storage at localhost
    env |= {name: f"http://{proxy}" for name in ("HTTP_PROXY", "https_proxy", "ALL_PROXY")}
    env |= {"NO_PROXY": "example.org", "PREFECT_API_URL": server}
    env |= {"AWS_ENDPOINT_URL": f"http://{proxy}", "AWS_MAX_ATTEMPTS": "1"}
    env |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    hub_server.shutdown()
    hub_server.server_close()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[1].startswith("acme/good@")
    # As a proxy it is asked for whole addresses; as the bucket, which it is too, for paths.
    assert through and not [line for line in through if not line.split()[1].startswith("/bucket")], through
