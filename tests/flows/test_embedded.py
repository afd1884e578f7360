"""Without a server: the command brings its own, and takes it away."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.server.embedded import answers

ROOT = Path(__file__).parents[2]
THEIRS = {
    "PREFECT_SERVER_API_AUTH_STRING": "admin:theirs",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    "PREFECT_SERVER_API_BASE_PATH": "/elsewhere",
    "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql+asyncpg://user:theirs@127.0.0.1:9/prefect",
    "PREFECT_API_AUTH_STRING": "admin:theirs",
    "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK": "s3-bucket/theirs",
    "PREFECT_FLOWS_DEFAULT_RETRIES": "2",
}
"""Settings of a user who has servers and flows of another kind."""


def _servers(home: Path) -> set[str]:
    """Processes of flows.server.embedded of this home of Prefect's."""
    pids = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = f"PREFECT_HOME={home}".encode() in (folder / "environ").read_bytes()
            if ours and b"flows.server.embedded" in (folder / "cmdline").read_bytes():
                pids.add(folder.name)
    return pids


def test_run_without_a_server_is_quiet_and_leaves_none_behind(finished, tiny, tmp_path) -> None:
    """Catches a server that outlives the command, Prefect's logs on the terminal, and output besides the JSON; a server
    that takes the user's settings for other servers, and a run that a terminal without θ ends."""
    store = shutil.copytree(finished[0], tmp_path / "store", symlinks=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    environment |= THEIRS | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    (tmp_path / "prefect").mkdir()
    profile = "".join(f'{name} = "{value}"\n' for name, value in THEIRS.items())
    (tmp_path / "prefect" / "profiles.toml").write_text(f'active = "theirs"\n[profiles.theirs]\n{profile}')
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", str(tiny), "--store", str(store), "--json"],
        cwd=tmp_path,  # the checkout's `.env` may name a server
        env={**environment, "PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ran"] == 0
    steps = len(finished[1])
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("  ")]  # a gate's reason
    first = [line.split()[0] for line in lines]
    assert first[0] == "decoder"
    (news,) = (line for line in lines if line.startswith("The dataset since"))
    assert "no row is new, gone or edited" in news
    assert [word for word in first if word not in ("decoder", "The")][:steps] == ["Cached"] * steps
    assert not [line for line in lines if "prefect" in line.lower() or "Traceback" in line]
    for _ in range(500):
        if not _servers(tmp_path / "prefect"):
            break
        time.sleep(0.02)
    assert not _servers(tmp_path / "prefect")
    with closing(sqlite3.connect(tmp_path / "prefect" / "prefect.db")) as database:  # `prefect server start` shows it
        assert database.execute("select run_count, state_type from flow_run").fetchall() == [(1, "COMPLETED")]


def training(profile: Path, tmp_path: Path, *settings: str) -> subprocess.Popen:
    """A run, in a session of its own, whose long training has written its first checkpoint."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    command = [sys.executable, "-m", "flows.cli", "run", str(profile), "--store", str(tmp_path / "store")]
    run = subprocess.Popen(
        [*command, *(part for setting in ("sft.epochs=500", *settings) for part in ("--set", setting))],
        cwd=tmp_path,  # the checkout's `.env` may name a server
        env={**environment, "PREFECT_HOME": str(tmp_path / "prefect"), "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        # A test run in the background of a shell has SIGINT ignored, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    scratch = tmp_path / "store" / "spinloop-store-v1" / "scratch"
    for _ in range(6000):
        if list(scratch.glob("sft-*/checkpoint-*")) or run.poll() is not None:
            break
        time.sleep(0.02)
    return run


@pytest.mark.full
def test_ctrl_c_ends_the_run_in_one_sentence(tiny, tmp_path) -> None:
    """Catches a server that Ctrl-C reaches too: the run would then retry a dead port for minutes."""
    run = training(tiny, tmp_path)
    os.killpg(run.pid, signal.SIGINT)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert err.splitlines()[-1].startswith("spinloop: interrupted; finished steps are in the store")
    assert "Traceback" not in err


@pytest.mark.full
@pytest.mark.parametrize("everyone", [True, False])
def test_sigterm_ends_the_run_with_a_checkpoint_and_a_code_of_its_own(tiny, tmp_path, everyone: bool) -> None:
    """Catches a run that Slurm's SIGTERM, which every process of a job gets, ends before its training has written a
    checkpoint; one that passes the signal on to nobody where it alone gets it; a server that is gone before its run;
    and an end that cannot be told from a failure, or takes as long as Prefect's retries."""
    run = training(tiny, tmp_path, "runtime.checkpoint_every=40")
    began = time.monotonic()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            mine = f"PREFECT_HOME={tmp_path / 'prefect'}".encode() in (process / "environ").read_bytes()
            if mine and (everyone or int(process.name) == run.pid):
                os.kill(int(process.name), signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 75, err
    last = err.splitlines()[-1]
    step = re.fullmatch(
        r"spinloop: sft: ended by SIGTERM after step (\d+) of \d+; its checkpoint is written, and .*", last
    )
    assert step and "Traceback" not in err and time.monotonic() - began < 15, err
    scratch = tmp_path / "store" / "spinloop-store-v1" / "scratch"
    assert int(step[1]) % 40 and [*scratch.glob(f"sft-*/checkpoint-{int(step[1]):08}")]


class Busy(BaseHTTPRequestHandler):
    """Needs half a second for an answer."""

    def do_GET(self) -> None:
        time.sleep(0.5)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args) -> None: ...


def test_busy_server_is_there_and_an_absent_one_is_not() -> None:
    """Catches a run that is refused because its server, just restarted, needs a moment for its first answer."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        url = f"http://127.0.0.1:{server.server_port}/api"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert not answers(url, 0.1)
        assert answers(url, 30)
        server.shutdown()
    began = time.monotonic()
    assert not answers(url, 30)
    assert time.monotonic() - began < 10  # nobody listens: no reason to wait


DEMO = """#!/bin/sh
exec {python} -c 'from flows.server import settings; print(repr(settings.configured_server()))'
"""


def test_make_demo_needs_no_server_that_a_file_names(tmp_path: Path) -> None:
    """Catches a demo that ends in a checkout whose `.env` names a server that is down; one that leaves out a server
    which the person's own environment names."""
    (tmp_path / ".env").write_text("PREFECT_API_URL=http://127.0.0.1:9/api\n")
    (tmp_path / "spinloop").write_text(
        DEMO.format(python=sys.executable)
    )  # the run's first question, in place of a run
    (tmp_path / "spinloop").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = {**kept, "PREFECT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = ["make", "-s", "-f", ROOT / "Makefile", "--old-file", ".venv/ready", f"BIN={tmp_path}", "demo"]

    def asked(**more: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=env | more, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert asked() == "''"
    assert asked(PREFECT_API_URL="http://127.0.0.1:8/api") == "'http://127.0.0.1:8/api'"
    direct = subprocess.run([tmp_path / "spinloop"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert direct.stdout.strip() == "'http://127.0.0.1:9/api'"  # which every other command asks
