"""One S3 server for the session; for each test its own prefix, its own proxy, and machines with their own caches."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spin_core.store.s3.objects import Objects
from spin_core.store.s3.remote import RemoteStore
from tests.faults.s3 import machine
from tests.faults.s3.held import Held, honest, serving
from tests.faults.s3.server import BUCKET, KEYS, SERVERS, Proxy, proxied, served


@pytest.fixture(scope="session", params=SERVERS)
def s3_server(request: pytest.FixtureRequest) -> Iterator[str]:
    """The server's address; the bucket is there."""
    with served(request.param) as url, pytest.MonkeyPatch.context() as patch:
        _credentials(patch)
        patch.setenv("AWS_ENDPOINT_URL", url)
        with machine.quiet():
            Objects(f"s3://{BUCKET}", "x")._fs.call_s3("create_bucket", Bucket=BUCKET)
        yield url


def _credentials(patch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        patch.setenv(name, value)


@pytest.fixture(scope="session")
def s3_proxy(s3_server: str) -> Iterator[Proxy]:
    """One for the session, as the client of one address is made once."""
    with proxied(s3_server) as made:
        yield made


@pytest.fixture
def proxy(s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What the AWS settings of this test name as the service."""
    _credentials(monkeypatch)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.url)
    yield s3_proxy
    s3_proxy.forget()


@pytest.fixture(scope="session")
def s3_held() -> Iterator[Held]:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install -e '.[s3]'")
    with serving() as made:
        yield made


@pytest.fixture
def held(s3_held: Held, monkeypatch: pytest.MonkeyPatch) -> Held:
    """An empty service in this process, which the AWS settings of this test name."""
    _credentials(monkeypatch)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_held.url)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3_held.lie, s3_held.objects, s3_held.page = honest, {}, 1000
    return s3_held


@pytest.fixture
def url(proxy: Proxy) -> str:
    """A store's name, where there is nothing yet."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:12]}"


Machine = Callable[..., RemoteStore]


@pytest.fixture
def at(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Opens the store as a machine of this name sees it: with the cache of that machine."""

    def opened(name: str = "a", **how: bool) -> RemoteStore:
        monkeypatch.setenv("SPINLOOP_CACHE", str(tmp_path / name))
        return RemoteStore(url, **how)

    return opened
