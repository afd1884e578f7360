"""A real Prefect server for the session, and runs of a tiny profile against it: fixtures of every test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from tests.flows import migrated
from tests.flows.shared_children import shared

Called = tuple[int, str, str]

TINY = {
    "name": "tiny",
    "seed": 3,
    "iterations": 2,
    "model": {"path": "builtin:tiny-llama"},
    "dataset": {"path": "builtin:tasks", "limit": 60, "test_limit": 12, "shard_rows": 16},
    "chat": {"max_prompt_length": 48},
    "sft": {"lr": 1e-3, "epochs": 1, "global_batch": 16, "max_length": 80},
    "generate": {"max_new_tokens": 8},
    "finetune": {"lr": 1e-4, "beta": 1.0, "schedule_epochs": 1, "global_batch": 16, "max_length": 80},
    "evaluate": {"exact_match": "answer", "max_new_tokens": 8},
    "runtime": {"threads": 1, "checkpoint_every": 1, "micro_tokens": 1024},
}


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """`prefect server start` on the port that the session's settings name."""
    url = os.environ["PREFECT_API_URL"]
    migrated.home(Path(os.environ["PREFECT_HOME"]))
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start"],
        cwd=os.environ["PREFECT_HOME"],  # not the checkout, whose `.env` may set a password
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            break
        except OSError:
            time.sleep(0.2)
    else:
        pytest.fail("prefect server start did not answer in 120 s")
    yield url
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny profile as a file."""
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's untrained model as an ordinary model directory of a user."""
    from spin_core.job import Job
    from spin_core.stages import demo_model

    out = tmp_path_factory.mktemp("model")
    demo_model.run({}, demo_model.Config(seed=0), Job(out=out, scratch=out))
    return out


@pytest.fixture
def spinloop(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture) -> Iterator[Callable[..., Called]]:
    """The command line in this process: exit code, standard output, standard error. A run's stage process serves the
    next run too, but in tests of faults."""

    def call(*args: object) -> tuple[int, str, str]:
        from flows.cli.__main__ import main

        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            # After 20 s without an answer of the server this process would end: on a full machine that was pytest's.
            patch.setattr("flows.ending.SECONDS", 600.0)
            try:
                main([str(arg) for arg in args])
                code = 0
            except SystemExit as stop:
                code = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return code, out, err

    with nullcontext() if "faults" in request.path.parts else shared():
        yield call


@pytest.fixture
def run(spinloop, server, tiny) -> Callable[..., list[dict]]:
    """Run the tiny profile into a store and give the ledger of its steps."""

    def call(store: Path, *settings: str) -> list[dict]:
        sets = [part for setting in settings for part in ("--set", setting)]
        code, out, err = spinloop("run", tiny, "--store", store, "--json", *sets)
        assert code == 0, err
        return json.loads(Path(json.loads(out)["folder"], "steps.json").read_text())

    return call


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of this test run, filled by `make`: once, whichever of pytest-xdist's processes asks first. A
    tiny run takes 20 to 40 s of a core."""
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{place}.lock"):
        if not (place / "made").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make(place)
            (place / "made").touch()
    return place


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> tuple[Path, list[dict]]:
    """A store in which the tiny profile has run once, and that run's ledger. Tests that change a store copy it
    first. The run is on no test's server."""

    def make(place: Path) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        ours = {"PREFECT_HOME": str(migrated.home(place / "prefect")), "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "flows.cli", "run", str(tiny), "--store", str(place / "store"), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=kept | ours, check=False)
        assert done.returncode == 0, done.stderr

    store = once(tmp_path_factory, "finished", make) / "store"
    return store, json.loads((store / "spinloop-store-v1" / "latest" / "steps.json").read_text())
