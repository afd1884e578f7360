"""Workers on the session's server: pools, deployments and processes as `spinloop deploy` and `prefect worker start`
make them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import TINY

ROOT = Path(__file__).parents[3]
MARK = "SPINLOOP_TEST_MARK"


class Worker:
    """`prefect worker start` of one pool, and everything that comes of it: its flow runs' processes carry the mark."""

    def __init__(self, pool: str, store: Path, **env: str):
        self.mark = uuid.uuid4().hex
        self.pool = pool
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool],
            cwd=ROOT,
            env={
                **os.environ,
                "SPINLOOP_STORE": str(store),
                "PREFECT_WORKER_QUERY_SECONDS": "1",
                MARK: self.mark,
                **env,
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # Started from a shell's background job it would ignore SIGINT, and then its own SIGTERM.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def processes(self) -> dict[int, str]:
        """Every living process of this worker but itself: number → command line."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX" and int(folder.name) != self.process.pid:
                        found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
        return found

    def stop(self) -> None:
        """End the worker and what it started."""
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture(scope="session")
def store(tmp_path_factory) -> Path:
    """The store of the deployed pools."""
    return tmp_path_factory.mktemp("pool-store")


@pytest.fixture(scope="session")
def deployed(server: str, store: Path) -> str:
    """The server with the pools and deployments on it; its API's address."""
    command = [sys.executable, "-m", "flows.cli", "deploy", "--store", str(store)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return server


@pytest.fixture(scope="module")
def workers(deployed: str, store: Path) -> Iterator[dict[str, Worker]]:
    """One worker on each pool."""
    started = {pool: Worker(pool, store) for pool in ("spin-cpu", "spin-gpu")}
    yield started
    for worker in started.values():
        worker.stop()


@pytest.fixture
def profile(tmp_path: Path) -> Callable[..., Path]:
    """A tiny profile as a file, another seed for each test so that nothing is in the store; sections laid over it."""

    def write(**sections: object) -> Path:
        data = {**TINY, "seed": uuid.uuid4().int % 10**6, "iterations": 1}
        for name, part in sections.items():
            data[name] = {**data[name], **part} if isinstance(part, dict) and isinstance(data.get(name), dict) else part
        path = tmp_path / f"tiny-{uuid.uuid4().hex[:6]}.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return write


def until(what: Callable[[], object], seconds: float = 120) -> object:
    """The first true answer of `what`; fails after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.1)
    pytest.fail(f"{what} did not come true in {seconds:g} s")
