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
from uuid import UUID

import pytest
import yaml
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort

from tests.flows.fixtures import TINY

ROOT = Path(__file__).parents[3]
FULL = bool(os.environ.get("SPINLOOP_TEST_SERVER"))  # `make test-server`; else what takes a minute and more is left out
in_full = pytest.mark.skipif(not FULL, reason="takes a minute and more: `make test-server` runs it")
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
        commands = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX" and int(folder.name) != self.process.pid:
                        commands[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
        return commands

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
        data = {**TINY, "name": "pooled", "seed": uuid.uuid4().int % 10**6, "iterations": 1}
        for name, part in sections.items():
            data[name] = {**data[name], **part} if isinstance(part, dict) and isinstance(data.get(name), dict) else part
        path = tmp_path / f"tiny-{uuid.uuid4().hex[:6]}.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    return write


def until(what: Callable[[], object], seconds: float = 120, state: Callable[[], object] = str) -> object:
    """The first true answer of `what`; fails after so many seconds, with what `state` says then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.1)
    pytest.fail(f"{what} did not come true in {seconds:g} s. {state()}")


class Api:
    """What the tests request of the server."""

    def __init__(self) -> None:
        from prefect.client.orchestration import get_client

        self.client = get_client(sync_client=True).__enter__()

    def start(self, deployment: str, **parameters: object) -> UUID:
        """Create a flow run, as the UI does; its id."""
        stored = self.client.read_deployment_by_name(deployment)
        return self.client.create_flow_run_from_deployment(stored.id, parameters=parameters).id

    def wait(self, run: UUID, seconds: float = 600) -> FlowRun:
        """The flow run once it has ended. Its 30 to 50 s were more than 240 where CI's machine was slow and full."""

        def state() -> State | None:
            return self.client.read_flow_run(run).state

        until(lambda: (now := state()) and now.is_final(), seconds, lambda: f"Its state: {state()!r}")
        return self.client.read_flow_run(run)

    def of_pool(self, pool: str = "spin-gpu") -> dict[UUID, FlowRun]:
        """Every flow run of a pool."""
        named = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
        runs: dict[UUID, FlowRun] = {}
        offset = 0
        while page := self.client.read_flow_runs(work_pool_filter=named, sort=FlowRunSort.ID_DESC, offset=offset):
            runs |= {run.id: run for run in page}
            offset += len(page)
        return runs


class Since:
    """The GPU pool's flow runs since this was made."""

    def __init__(self, api: Api) -> None:
        self.api, self.before = api, set(api.of_pool())

    def runs(self, stage: str = "") -> list[FlowRun]:
        """Those of a stage, oldest first."""
        new = [run for id, run in self.api.of_pool().items() if id not in self.before and run.name.startswith(stage)]
        return sorted(new, key=lambda run: str(run.created))

    def states(self, stage: str = "") -> list[str]:
        return [run.state.name if run.state else "" for run in self.runs(stage)]


@pytest.fixture
def api(deployed: str) -> Api:
    return Api()


@pytest.fixture
def gpu_runs(api: Api) -> Since:
    return Since(api)
