"""`make server` and `make worker` as a person types them, in a folder with nothing but what the checkout ships; and
what a stranger gets from that server: other users of the machine, other machines, pages in the browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.faults.fault import Fault
from tests.flows.pools.conftest import ROOT, until
from tests.flows.pools.shipped import (
    Server,
    checkout,
    clean,
    end,
    free_port,
    make,
    output_of,
    server_env,
    start,
    strangers_are_refused,
)

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """`make server` in a folder that has no `.env` yet."""
    server = Server(checkout(tmp_path_factory.mktemp("checkout")), make("server"), free_port())
    yield server
    server.stop()


def test_env_is_made_once_with_a_password_of_its_own(tmp_path) -> None:
    """Catches a second `make server` that changes the password under running workers, a password that is the same on
    two machines, and a file that other users can read."""
    first, second = (checkout(tmp_path / name) for name in ("a", "b"))
    results = [server_env(folder, 4333) for folder in (first, second)]
    texts = [(folder / ".env").read_text() for folder in (first, second)]
    assert [(folder / ".env").stat().st_mode & 0o777 for folder in (first, second)] == [0o600, 0o600]
    logins = [line for text in texts for line in text.splitlines() if "AUTH_STRING=" in line]
    passwords = {line.partition("=admin:")[2] for line in logins}
    assert len(logins) == 4 and len(passwords) == 2 and min(map(len, passwords)) >= 32
    (first / ".env").chmod(0o644)
    results.append(server_env(first, 4444))
    assert (first / ".env").read_text() == texts[0]
    assert (first / ".env").stat().st_mode & 0o777 == 0o600
    for done in results:
        assert done.returncode == 0 and "UI: http://127.0.0.1:4333 " in done.stdout and ".env" in done.stdout
        assert not [password for password in passwords if password in done.stdout + done.stderr]


@pytest.mark.parametrize(
    "text", ["", "PREFECT_API_URL=http://127.0.0.1:4200/api\n", "PREFECT_SERVER_API_AUTH_STRING=\n"]
)
def test_an_env_without_password_starts_no_server(tmp_path, text: str) -> None:
    """Catches a server that is open to everybody because a `.env` of something else was there."""
    folder = checkout(tmp_path)
    (folder / ".env").write_text(text)
    done = subprocess.run(make("server"), cwd=folder, env=clean(folder), capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "server-env: .env has no PREFECT_SERVER_API_AUTH_STRING" in done.stderr.splitlines()[0]
    assert (folder / ".env").read_text() == text


def test_a_port_that_is_none_makes_no_env(tmp_path) -> None:
    """Catches a `.env` that stays behind with an address no server can have."""
    done = server_env(checkout(tmp_path), "80x")
    assert done.returncode == 2 and done.stderr.startswith("server-env: PORT=80x")
    assert not (tmp_path / ".env").exists()


def test_strangers_are_refused(server: Server) -> None:
    """Catches a server that reads, runs or streams anything without the password, or runs anything that a forged
    request names, or lets another page read its answers."""
    strangers_are_refused(server)


def test_only_this_machine_reaches_it(server: Server) -> None:
    """Catches a server that listens on more than 127.0.0.1."""
    port = int(server.origin.rpartition(":")[2])
    listening = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        rows = [line.split() for line in Path(table).read_text().splitlines()[1:]]
        listening += [row[1] for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]
    assert listening == [f"0100007F:{port:04X}"]
    with socket.socket() as other:
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", port)) != 0


def test_the_password_is_in_the_file_alone(server: Server) -> None:
    """Catches a password in the process list, in the server's log, on the terminal, or in what a page is sent."""
    password = server.login.removeprefix("admin:")
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "prefect server start" in lines and password not in lines
    assert server.call("GET", "/admin/version", login=f"admin:{password}x")[0] == 401
    assert "UI: " in server.log.read_text() and password not in server.log.read_text()
    viewed = output_of(server.folder, "prefect", "config", "view", "--show-sources")
    assert "from .env file" in viewed and password not in viewed
    _, _, settings = server.call("GET", "/admin/settings", login=server.login)
    assert settings["server"]["api"]["csrf_protection_enabled"] and password not in json.dumps(settings)
    with urllib.request.urlopen(f"{server.origin}/ui-settings", timeout=20) as answer:
        ui_settings = json.load(answer)
    assert ui_settings["api_url"] == "/api" and password not in json.dumps(ui_settings)


def test_a_worker_logs_in_and_ends_with_ctrl_c(server: Server) -> None:
    """Catches a worker that does not read `.env`, one that takes several runs on one GPU, and one that stays when the
    terminal sends Ctrl-C."""
    output_of(server.folder, "prefect", "work-pool", "create", "spin-gpu", "--type", "process")
    log = server.folder / "worker"
    process = start(make("worker", "POOL=spin-gpu"), server.folder, log.open("wb"))
    until(lambda: process.poll() is not None or server.post("/work_pools/spin-gpu/workers/filter", {}), 60)
    assert process.poll() is None, log.read_text()
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert Path(f"/proc/{child}/cmdline").read_text().endswith("worker\0start\0--pool\0spin-gpu\0--limit\x001\0")
    began = time.monotonic()
    end(process)
    assert time.monotonic() - began < 10 and not Path(f"/proc/{child}").exists()
    assert "Traceback" not in log.read_text()


def test_workers_limits() -> None:
    """Catches a limit on the pool whose runs only wait, none on the pool with the GPUs, and one nobody can raise."""
    for words, ending in (
        ([], "spin-cpu"),
        (["POOL=spin-gpu"], "spin-gpu --limit 1"),
        (["LIMIT=3"], "spin-cpu --limit 3"),
    ):
        command = [*make("worker", *words), "--dry-run"]
        done = subprocess.run(command, cwd=ROOT, env=clean(ROOT), capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith(f"worker start --pool {ending}")


def test_run_says_that_the_server_is_not_up(tmp_path) -> None:
    """Catches a traceback, or minutes of retries, where a `.env` names a server that is not running."""
    assert server_env(checkout(tmp_path), free_port()).returncode == 0
    command = [sys.executable, "-m", "flows.cli", "run", "demo", "--store", str(tmp_path / "store")]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean(tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("spinloop: PREFECT_API_URL http://127.0.0.1:")


PAGE = """<!doctype html><body><script>
const run = "API/deployments/TARGET/create_flow_run", body = '{"name": "forged"}';
const plain = {"Content-Type": "text/plain"};
const typed = {"Content-Type": "application/json"}, known = {...typed, Authorization: "Basic " + btoa("LOGIN")};
const post = (headers, more) => fetch(run, {method: "POST", body, headers, ...more});
const tries = {
  json: () => post(typed), plain: () => post(plain),
  silent: () => post(plain, {mode: "no-cors", credentials: "include"}),
  login: () => post(known), read: () => fetch("API/admin/version"), token: () => fetch("API/csrf-token?client=page"),
  beacon: () => new Promise((_, no) => { navigator.sendBeacon(run, body); setTimeout(no, 500); }),
  form: () => new Promise((_, no) => {
    document.body.innerHTML = `<iframe name=f></iframe><form method=post enctype=text/plain target=f action="${run}">` +
      `<input name='{"name":"' value='"}'></form>`;
    document.forms[0].submit(); setTimeout(no, 2000); }),
  socket: () => new Promise((yes, no) => {
    const s = new WebSocket("API/events/in".replace("http", "ws"), "prefect");
    s.onopen = () => s.send('{"type": "auth"}'); s.onmessage = yes; s.onclose = s.onerror = no; }),
};
(async () => {
  const outcomes = {};
  const seen = answer => answer.type == "opaque" ? "sent" : "got " + answer.status;
  for (const name in tries) outcomes[name] = await tries[name]().then(seen, () => "refused");
  fetch("/done", {method: "POST", body: JSON.stringify(outcomes)});
})();
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_no_page_in_the_browser_can_start_a_run(server: Server, tmp_path) -> None:
    """Catches a server that takes a request which a page of somebody else had the person's browser send: by fetch with
    and without CORS, a form, a beacon, a websocket, and even with the password."""
    page = PAGE.replace("API", server.url).replace("TARGET", server.deployment()).replace("LOGIN", server.login)
    before = [one["id"] for one in server.post("/flow_runs/filter", {})]
    outcomes: list[dict] = []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def do_POST(self) -> None:
            outcomes.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    command = [CHROMIUM, "--headless=new", "--disable-gpu", "--no-first-run", f"--user-data-dir={tmp_path / 'browser'}"]
    command += [] if os.getuid() else ["--no-sandbox"]
    browser = start(
        [*command, f"http://127.0.0.1:{site.server_port}/"], server.folder, subprocess.DEVNULL, HOME=str(tmp_path)
    )
    try:
        until(lambda: outcomes, 60)
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()
        site.shutdown()
    assert [one["id"] for one in server.post("/flow_runs/filter", {})] == before
    assert len(outcomes) == 1 and len(outcomes[0]) == 9

    def refused(way: str) -> None:
        assert outcomes[0][way] == ("sent" if way == "silent" else "refused")

    Fault("S10", "a page in the browser: ways to have it send a request").each(outcomes[0], refused)
