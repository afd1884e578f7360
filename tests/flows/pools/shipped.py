"""The server set-up that the project ships, as a person uses it: a folder with its Makefile and scripts, the processes
that `make` starts there, and what a stranger gets from such a server."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from itertools import product
from pathlib import Path

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.faults.fault import Fault
from tests.flows import migrated
from tests.flows.pools.conftest import ROOT, until

SOCKETS = (
    "/events/in",
    "/events/out",
    "/logs/out",
    "/task_runs/subscriptions/scheduled",
    "/work_pools/spin-gpu/workers/connect",
)
BIN = Path(sys.executable).parent
UNKNOWN = Fault("S10", "requests to our server without its password: who calls × what")
FORGED = Fault("S10", "requests with the password and a forged or no CSRF token")
PAGES = Fault("S10", "requests from another page's origin")
STREAMS = Fault("S10", "websockets without the password")


class Server:
    """A Prefect server of a folder whose `.env` sets everything, and requests to it."""

    def __init__(self, folder: Path, command: list[str], port: int, more: str = "", **env: str):
        """`more`: a line that a person adds to `.env`."""
        assert server_env(folder, port).returncode == 0
        with (folder / ".env").open("a") as file:
            file.write(more)
        migrated.home(folder / "prefect")
        self.folder = folder
        self.settings = read(folder / ".env")
        self.login = self.settings["PREFECT_API_AUTH_STRING"]
        self.url = self.settings["PREFECT_API_URL"]
        self.origin = self.url.removesuffix("/api")
        self.log = folder / "log"
        self.process = start(command, folder, self.log.open("wb"), **env)
        try:
            until(self._answers, 240)
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.call("GET", "/ready")[0] == 200
        except OSError:
            return False

    def call(self, method: str, path: str, body: object = None, login: str | None = None, **headers: str):
        """Status, headers and JSON of the answer; `_` in a header's name is `-`."""
        request = urllib.request.Request(self.url + path, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if login is not None:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        for _ in range(20):
            try:
                with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                    return answer.status, answer.headers, json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                failure = error.code, error.headers, error.read().decode()
            if failure[0] != 503:
                break
            time.sleep(1)  # SQLite is locked for a moment, as Prefect says it: no answer yet
        return failure

    def token(self) -> dict[str, str]:
        """Headers with a token against forged requests: only who has the password gets one."""
        status, _, made = self.call("GET", "/csrf-token?client=tests", login=self.login)
        assert status == 200
        return {"Prefect_Csrf_Client": "tests", "Prefect_Csrf_Token": made["token"]}

    def post(self, path: str, body: object):
        """The JSON of an answer to who has the password and a token."""
        status, _, answer = self.call("POST", path, body, self.login, **self.token())
        assert status in (200, 201), answer
        return answer

    def deployment(self) -> str:
        """The id of a deployment that a stranger would like to run."""
        flow = self.post("/flows/", {"name": "target"})
        return self.post("/deployments/", {"name": "target", "flow_id": flow["id"]})["id"]

    def stop(self) -> None:
        end(self.process)


def clean(folder: Path, **env: str) -> dict[str, str]:
    """The environment without Prefect's settings of this session."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MAKE", "MFLAGS"))}
    return {**kept, "PREFECT_HOME": str(folder / "prefect"), **env}


def start(command: list[str], folder: Path, out, **env: str) -> subprocess.Popen:
    """A process in the foreground of a terminal of its own."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=clean(folder, **env),
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end(process: subprocess.Popen) -> None:
    """Ctrl-C, as the terminal sends it; nothing may stay."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def output_of(folder: Path, *words: str) -> str:
    """What a command prints in the folder; it must succeed."""
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, env=clean(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def make(*words: str) -> list[str]:
    """`make` with this session's environment instead of a `.venv` that would have to be built."""
    return ["make", "--no-print-directory", "--old-file", ".venv/ready", f"BIN={BIN}", *words]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def checkout(folder: Path) -> Path:
    """The files of the server set-up in a folder."""
    (folder / "deployments").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "deployments/server-env.sh", folder / "deployments")
    return folder


def read(env: Path) -> dict[str, str]:
    """The variables of an env file."""
    return dict(line.split("=", 1) for line in env.read_text().splitlines() if line[:1].isalpha())


def server_env(folder: Path, port: int | str = 4200) -> subprocess.CompletedProcess:
    """What makes `.env`, in the folder."""
    script = folder / "deployments/server-env.sh"
    return subprocess.run([script], env={**os.environ, "PORT": str(port)}, capture_output=True, text=True, check=False)


def strangers_are_refused(server: Server) -> None:
    """What holds for every server that the project ships."""
    run = f"/deployments/{server.deployment()}/create_flow_run"
    password = server.login.removeprefix("admin:")
    logins = (None, "", ":", "admin", "admin:", password, f"admin:{password[:-1]}", f"Admin:{password}")
    requests = (
        ("GET", "/admin/version", None),
        ("GET", "/admin/settings", None),
        ("GET", "/csrf-token?client=stranger", None),
        ("POST", "/flow_runs/filter", {}),
        ("POST", run, {}),
    )
    tokens = (
        {},
        {**server.token(), "Prefect_Csrf_Token": "0" * 64},
        {**server.token(), "Prefect_Csrf_Client": "x"},
    )
    origins = ("http://127.0.0.1:9", "http://localhost:9", "https://example.org", "null")

    def unknown(point: tuple) -> None:
        login, (method, path, body) = point
        status, _, answer = server.call(method, path, body, login, **server.token())
        assert status == 401, (login, path, answer)

    def forged(token: dict) -> None:
        assert server.call("POST", run, {}, server.login, **token)[0] == 403

    def page(origin: str) -> None:
        preflight = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
        allowed = "access-control-allow-origin"
        assert allowed not in server.call("OPTIONS", run, Origin=origin, **preflight)[1]
        assert allowed not in server.call("GET", "/admin/version", None, server.login, Origin=origin)[1]

    def stream(path: str) -> None:
        assert [opens(server, path, login) for login in (None, "admin:wrong", server.login)] == [False, False, True]

    UNKNOWN.each(product(logins, requests), unknown)
    FORGED.each(tokens, forged)
    PAGES.each(origins, page)
    STREAMS.each(SOCKETS, stream)
    assert server.post("/flow_runs/filter", {}) == []
    server.post(run, {"name": "by who may"})
    assert [one["name"] for one in server.post("/flow_runs/filter", {})] == ["by who may"]


def opens(server: Server, path: str, login: str | None) -> bool:
    """Whether the server keeps a websocket open for who sends this login."""
    try:
        with connect(server.url.replace("http", "ws") + path, subprotocols=["prefect"], proxy=None) as channel:
            channel.send(json.dumps({"type": "auth", "token": login}))
            return json.loads(channel.recv(timeout=10)).get("type") == "auth_success"
    except ConnectionClosed:
        return False
