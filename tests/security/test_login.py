"""A login of a file (S17) goes to the server that the file names: commands with another PREFECT_API_URL, their requests
recorded by that other server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import pytest
from prefect.context import SettingsContext
from prefect.settings import Profile, Settings

from flows.cli.push import _token
from flows.server import deploy as deploying
from spin_core.errors import SpinloopError
from tests.faults.fault import LEVEL, Fault

ROOT = Path(__file__).parents[2]
PASSWORD = "admin:of-the-checkout"
FORMS = (PASSWORD, base64.b64encode(PASSWORD.encode()).decode())
OURS = "http://127.0.0.1:4200/api"
LEAKS = Fault("S17", "a login of .env, a TOML file or Prefect's profile, another address: commands × files")

FILES: dict[str, Callable[[str, str], str]] = {
    ".env": lambda name, value: f"PREFECT_API_{name}={value}\n",
    "prefect.toml": lambda name, value: f"api.{name.lower()} = '{value}'\n",
    "pyproject.toml": lambda name, value: f"tool.prefect.api.{name.lower()} = '{value}'\n",
    "profiles.toml": lambda name, value: f"profiles.mine.PREFECT_API_{name} = '{value}'\n",
}


class Recorder(ThreadingHTTPServer):
    """Somebody else's server: healthy, knows nothing, and keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_port}/api"


class _Answer(BaseHTTPRequestHandler):
    server: Recorder

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.sent.append(f"{self.command} {self.path}\n{self.headers}\n{body.decode(errors='replace')}")
        self.send_response(200 if self.path.endswith("/health") else 404)
        self.end_headers()
        self.wfile.write(b"true")

    do_POST = do_PUT = do_PATCH = do_GET

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def elsewhere() -> Iterator[Recorder]:
    """Another server than that of the checkout."""
    server = Recorder()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@contextmanager
def settings(url: str, **variables: str) -> Iterator[None]:
    """Prefect's settings read anew, from the folder that this is in, with these variables in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_AUTH_STRING", raising=False)  # tests/conftest.py keeps a checkout's own out
        patch.delenv("PREFECT_API_URL")
        patch.setenv("PREFECT_PROFILES_PATH", "profiles.toml")
        patch.setenv("PREFECT_PROFILE", "mine")
        for name, value in {"PREFECT_API_URL": url, **variables}.items():
            patch.setenv(name, value)
        with SettingsContext(profile=Profile(name="mine"), settings=Settings()):
            yield


def write(file: str, **values: str) -> None:
    """One file with a login, and no other, in the folder that this is in."""
    for name in FILES:
        Path(name).unlink(missing_ok=True)
    Path(file).write_text("".join(FILES[file](name, value) for name, value in values.items()))


@pytest.fixture
def commands(spinloop, tmp_path: Path) -> dict[str, Callable[[], tuple[int, str]]]:
    """Everything that takes a server's address: its exit code, and what it says."""

    def called(*words: object) -> tuple[int, str]:
        code, out, err = spinloop(*words, "--store", tmp_path / "store")
        return code, out + err

    def token() -> tuple[int, str]:  # `spinloop push --token-block` asks the server for it before all else
        try:
            return 0, _token("mine")[1]
        except SpinloopError as error:
            return error.exit_code, f"spinloop: {error}\n"

    return {
        "run": lambda: called("run", "demo"),
        "deploy": lambda: called("deploy"),
        "doctor": lambda: called("doctor"),
        "push": token,
    }


def test_login_of_a_file_is_sent_to_no_other_server(commands, elsewhere, tmp_path, monkeypatch) -> None:
    """Catches a command that, with only PREFECT_API_URL overridden, logs in there with the password of `.env` (110
    requests of a deploy did), of a TOML file or of Prefect's profile; and a refusal that does not name both."""
    monkeypatch.chdir(tmp_path)

    def refused(point: tuple) -> None:
        command, file, (credential, login), ours = point
        write(file, **({"URL": ours} if ours else {}), **{credential: login})
        with settings(elsewhere.url):
            code, said = commands[command]()
        assert not [sent for sent in elsewhere.sent if any(form in sent for form in FORMS)]
        assert code in (1, 2)
        (line,) = [line for line in said.splitlines() if f"the PREFECT_API_{credential} of " in line]
        assert elsewhere.url in line and (ours or "no server") in line and "PREFECT_API_URL" in line
        assert PASSWORD not in said and "Traceback" not in said

    password, key = ("AUTH_STRING", PASSWORD), ("KEY", PASSWORD)
    every = list(product(("run", "deploy", "push"), FILES, (password, key), (OURS, "")))
    few = [one for one in every if (one[2], one[3]) == (password, OURS) or one[0] == "deploy"]
    LEAKS.each([*(few if LEVEL == "pr" else every), ("doctor", ".env", password, OURS)], refused)


def test_login_goes_where_it_belongs(commands, elsewhere, tmp_path, monkeypatch) -> None:
    """Catches a server of one's own that no longer gets its password, from the file that names it or from the
    environment; and a recorder that would see nothing."""
    monkeypatch.chdir(tmp_path)
    for file, name in product(FILES, ("deploy", "push")):
        elsewhere.sent.clear()
        write(file, URL=elsewhere.url, AUTH_STRING=PASSWORD)
        with settings(f"{elsewhere.url}/"):
            code, said = commands[name]()
        assert code and " of " not in said.partition("PREFECT_API_AUTH_STRING")[2][:4], said
        assert any(FORMS[1] in sent for sent in elsewhere.sent), (file, name)
    write(".env", URL=OURS, AUTH_STRING="admin:another")
    for login, seen in ((PASSWORD, True), ("", False)):
        elsewhere.sent.clear()
        with settings(elsewhere.url, PREFECT_API_AUTH_STRING=login):
            commands["deploy"]()
        assert any(FORMS[1] in sent for sent in elsewhere.sent) is seen
        assert len(elsewhere.sent) > 1 and "Basic" not in "".join(elsewhere.sent if not seen else ())


def test_headers_of_a_file_are_a_login_too(commands, elsewhere, tmp_path, monkeypatch) -> None:
    """Catches PREFECT_CLIENT_CUSTOM_HEADERS, which may be a token for a proxy, sent to a server of somebody else."""
    monkeypatch.chdir(tmp_path)
    write(".env", URL=OURS)
    with Path(".env").open("a") as file:
        file.write(f"PREFECT_CLIENT_CUSTOM_HEADERS={json.dumps({'X-Proxy': PASSWORD})}\n")
    with settings(elsewhere.url):
        code, said = commands["deploy"]()
    assert code == 2 and "PREFECT_CLIENT_CUSTOM_HEADERS of .env" in said and elsewhere.sent == []


@pytest.mark.full
def test_prefects_own_deploy_reads_no_login_of_the_checkout(elsewhere, tmp_path, monkeypatch) -> None:
    """Catches a deploy that is started elsewhere, where there is no `.env`, and runs Prefect's command in a folder that
    has one, which Prefect then reads."""
    (tmp_path / "deployments").mkdir()
    one = "{name: x, entrypoint: flows.server.deployed.dataset, work_pool: {name: spin-cpu}}"
    (tmp_path / "deployments/prefect.yaml").write_text(f"name: x\npull: []\ndeployments: [{one}]\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(deploying, "FILES", tmp_path / "deployments")
    monkeypatch.chdir(tmp_path / "deployments")
    write(".env", URL=OURS, AUTH_STRING=PASSWORD)
    monkeypatch.chdir(tmp_path / "elsewhere")
    with settings(elsewhere.url), pytest.raises(SpinloopError, match="prefect deploy"):
        deploying._prefect_deploy()
    assert elsewhere.sent and not [sent for sent in elsewhere.sent if any(form in sent for form in FORMS)]


def test_make_worker_asks_first(tmp_path) -> None:
    """Catches a worker, which is Prefect's own command, that logs in elsewhere with the password of `.env`."""
    (tmp_path / ".env").write_text(f"PREFECT_API_URL={OURS}\nPREFECT_API_AUTH_STRING={PASSWORD}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = {**kept, "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = ["make", "-s", "-f", ROOT / "Makefile", "--old-file", ".venv/ready", f"BIN={Path(sys.executable).parent}"]
    done = subprocess.run([*command, "worker"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    first = done.stderr.splitlines()[0]
    assert done.returncode and "PREFECT_API_AUTH_STRING of .env is for" in first and "Traceback" not in done.stderr
