"""deployments/digests.sh against a registry: images by digest, or nothing changed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.deployments.rendered import ROOT

FILES = ("Dockerfile", "compose.yaml", "kubernetes/postgres.yaml")
IMAGE = re.compile(r"^(?:FROM| +image:) +(\S+)", re.M)
PINNED = re.compile(r"[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}")


class Registry(ThreadingHTTPServer):
    """Hands out tokens, and an image index for each name."""

    def __init__(self) -> None:
        self.tags = {"library/postgres:15-bookworm": 1, "library/python:3.11-slim-bookworm": 1}
        self.status, self.page, self.digest = 200, b"", ""
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def index(self, name: str) -> bytes:
        return json.dumps({"schemaVersion": 2, "manifests": [{"name": name, "build": self.tags[name]}]}).encode()

    def pinned(self, name: str) -> str:
        return f"{name.removeprefix('library/')}@sha256:{hashlib.sha256(self.index(name)).hexdigest()}"


class _Answer(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        here = self.server
        if self.path.startswith("/token?"):
            return self.answer(200, b'{"token": "anonymous"}')
        if self.headers["Authorization"] != "Bearer anonymous":
            challenge = f'Bearer realm="{here.url}/token",service="stub"'
            return self.answer(401, b"", {"WWW-Authenticate": challenge})
        if here.status != 200 or here.page:
            return self.answer(here.status, here.page)
        _, _, first, second, _, tag = self.path.split("/")
        body = here.index(f"{first}/{second}:{tag}")
        digest = here.digest or f"sha256:{hashlib.sha256(body).hexdigest()}"
        return self.answer(
            200 if "index.v1" in self.headers["Accept"] else 406, body, {"Docker-Content-Digest": digest}
        )

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of deployments/."""
    return shutil.copytree(ROOT / "deployments", tmp_path / "deployments")


def refresh(folder: Path, registry: Registry) -> subprocess.CompletedProcess:
    env = {"PATH": "/usr/bin:/bin", "REGISTRY": registry.url, "no_proxy": "*"}
    return subprocess.run([folder / "digests.sh"], env=env, capture_output=True, text=True, check=False)


def images(folder: Path) -> set[str]:
    """Of others; our own is built."""
    named = {name for file in FILES for name in IMAGE.findall((folder / file).read_text())}
    return {name for name in named if not name.startswith("spinloop:")}


def test_every_image_of_others_gets_the_digest_of_today(folder: Path, registry: Registry) -> None:
    """Catches an image that is left with a tag that others can move, a digest of one architecture or of no image, and a
    second run that changes what did not change or keeps an old digest."""
    wanted = {registry.pinned(name) for name in registry.tags}
    done = refresh(folder, registry)
    assert done.returncode == 0, done.stderr
    assert images(folder) == wanted and set(done.stdout.split()) == wanted
    assert all(PINNED.fullmatch(name) for name in wanted)
    made = [(folder / file).read_text() for file in FILES]
    assert refresh(folder, registry).returncode == 0
    assert [(folder / file).read_text() for file in FILES] == made
    registry.tags["library/postgres:15-bookworm"] = 2
    assert refresh(folder, registry).returncode == 0
    assert images(folder) == {registry.pinned(name) for name in registry.tags} != wanted


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"status": 404}, "answers 404"),
        ({"status": 429}, "answers 429"),
        ({"page": b"<html>Sign in</html>"}, "answers with what is no list of images"),
        ({"digest": f"sha256:{'0' * 64}"}, "answers with something else than it says"),
        ({"url": "http://127.0.0.1:9"}, "does not answer"),
    ],
)
def test_what_is_no_answer_changes_nothing(folder: Path, registry: Registry, wrong: dict, says: str) -> None:
    """Catches the digest of an error page, and files of which one is changed and the other is not."""
    before = [(folder / file).read_text() for file in FILES]
    for name, value in wrong.items():
        setattr(registry, name, value)
    done = refresh(folder, registry)
    assert done.returncode == 1 and says in done.stderr and done.stderr.endswith("; nothing is changed.\n"), done
    assert [(folder / file).read_text() for file in FILES] == before


def test_postgres_is_one_image_in_all_files() -> None:
    """Catches a compose file and a cluster with two versions of the database."""
    there = images(ROOT / "deployments")
    assert sorted(name.partition(":")[0] for name in there) == ["postgres", "python"]
    assert all(PINNED.fullmatch(name) for name in there) or not any("@" in name for name in there)
