"""The process of a tracker, with real boards: each step once, whatever is killed; failures are one warning."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spin_core.trackers.process import SinkProcess
from tests.trackers import reading


def sink(folder: Path, tracker: str, said: list[dict]) -> SinkProcess:
    """The sink of the run `demo-1` of the profile `demo`; `said` takes its events."""
    head = {
        "tracker": tracker,
        "folder": str(folder),
        "project": "demo",
        "run": "demo-1",
        "config": {"finetune.lr": 1e-4},
    }
    return SinkProcess(head, folder / "logs" / f"{tracker}.log", said.append)


def item(at: int, step: str = "finetune[iter 0]", key: str = "a") -> dict:
    return {"step": step, "key": key, "at": at, "values": {f"{step.partition('[')[0]}/loss": float(at)}}


def test_each_step_once_of_a_sink_that_was_killed(tmp_path):
    """Catches steps that a resume sends again, steps lost with the process that was to send them, and a record that
    a kill cut off in the middle, behind which nothing is read; and a data set that changed, whose curves lie over the
    old ones or lack the steps that did not change."""
    pytest.importorskip("tensorboard")
    first = sink(tmp_path, "tensorboard", [])
    for at in range(1, 3001):
        first.send(item(at))
    board = tmp_path / "tensorboard" / "demo" / "demo-1"
    reading.until(lambda: sum(file.stat().st_size for file in board.glob("events.*")) > 2000)
    (pid,) = reading.sinks_of(tmp_path)
    os.kill(pid, signal.SIGKILL)
    reading.until(lambda: not reading.sinks_of(tmp_path))
    then = reading.tensorboard(tmp_path, "demo", "demo-1")["finetune/loss"]
    assert 0 < len(then) < 3000, "killed too late or too early to show anything"
    with next(iter(sorted(board.glob("events.*")))).open("ab") as file:
        file.write(b"\x1a\x00\x00")  # the beginning of a record
    said: list[dict] = []
    second = sink(tmp_path, "tensorboard", said)
    for at in [*range(100, 120), *range(1, 3001)]:  # what the child said live, and then all of the finished step
        second.send(item(at))
    second.close(300)
    assert reading.tensorboard(tmp_path, "demo", "demo-1") == {
        "finetune/loss": [(at, float(at)) for at in range(1, 3001)]
    }
    assert [list(event) for event in said] == [["place"]]

    third = sink(tmp_path, "tensorboard", [])
    for one in (item(1, "sft[θ_0]"), item(2), item(3), item(2, "evaluate[θ_1]")):
        third.send({**one, "key": "b"} if one["step"].startswith("finetune") else one)
    third.close(300)
    assert len(reading.tensorboard(tmp_path, "demo", "demo-1")["finetune/loss"]) == 3000
    other = reading.tensorboard(tmp_path, "demo", "demo-1-2")
    assert other == {"sft/loss": [(1, 1.0)], "finetune/loss": [(2, 2.0), (3, 3.0)], "evaluate/loss": [(2, 2.0)]}


def test_tracker_that_cannot_work_is_one_warning_and_holds_up_nobody(tmp_path):
    """Catches a failure that is said for each step, one that nobody sees, and one that the end waits for."""
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    said: list[dict] = []
    broken = sink(tmp_path, "tensorboard", said)
    for at in range(1, 100):
        broken.send(item(at))
    reading.until(lambda: bool(said))
    began = time.monotonic()
    broken.close(60)
    assert time.monotonic() - began < 20
    assert len(said) == 1 and "warning" in said[0], said
    assert not reading.sinks_of(tmp_path)


def test_missing_package_is_a_sentence_with_the_extra(tmp_path):
    """Catches a traceback, or `No module named`, in place of what to install."""
    missing = next((name for name in ("wandb", "mlflow", "tensorboard") if not _installed(name)), None)
    if missing is None:
        pytest.skip("wandb, mlflow and tensorboard are all installed")
    said: list[dict] = []
    one = sink(tmp_path, missing, said)
    one.send(item(1))
    one.close(300)
    assert [*said[0]] == ["warning"] and f"the package {missing} is not installed; `pip install" in said[0]["warning"]
    assert ".[trackers]" in said[0]["warning"]


def _installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


@pytest.fixture
def mlflow_server(tmp_path, monkeypatch):
    """A real MLflow server on loopback with a database of its own; its address."""
    pytest.importorskip("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"],
            stdout=log,
            stderr=log,
            cwd=tmp_path,
            start_new_session=True,
        )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    reading.until(lambda: answers() or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_mlflow_server_has_one_run_with_each_step_once(mlflow_server, tmp_path, monkeypatch):
    """Catches a second MLflow run of a run that goes on, steps that are sent twice, a profile that is not there, and
    the user's name and this machine's paths on a server that others read."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    first = sink(tmp_path / "trackers", "mlflow", [])
    for at in range(1, 6):
        first.send(item(at))
    first.close(300)
    said: list[dict] = []
    second = sink(tmp_path / "trackers", "mlflow", said)
    for at in [4, 5, 6, *range(1, 9)]:
        second.send(item(at))
    second.close(300)
    assert [list(event) for event in said] == [["place"]], said
    expected = {"finetune/loss": [(at, float(at)) for at in range(1, 9)]}
    assert reading.mlflow(mlflow_server, "demo", "demo-1") == expected
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_server)
    (run,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    assert run.data.params == {"finetune.lr": "0.0001"}
    assert not [value for value in run.data.tags.values() if str(tmp_path) in value or ".py" in value], run.data.tags
    assert run.data.tags["mlflow.user"] == "spinloop"
