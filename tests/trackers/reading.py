"""Boards read back by their tracker's own reader: every point, so that one that is there twice is seen."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

Curves = dict[str, list[tuple[int, float]]]


def tensorboard(folder: Path, project: str, run: str) -> Curves:
    """By name the (step, value) of all event files of a run, by step; float32."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard" / project / run), {"scalars": 0}, purge_orphaned_data=False)
    read.Reload()
    return {name: sorted((one.step, one.value) for one in read.Scalars(name)) for name in read.Tags()["scalars"]}


def mlflow(uri: str, project: str, run: str) -> Curves:
    """The same of the runs of this name, together: a second run of one name is seen too."""
    from mlflow import MlflowClient

    client, curves = MlflowClient(uri), defaultdict(list)
    experiment = client.get_experiment_by_name(project)
    assert experiment
    for one in client.search_runs([experiment.experiment_id], f"tags.`mlflow.runName` = '{run}'"):
        for name in one.data.metrics:
            curves[name] += [(at.step, at.value) for at in client.get_metric_history(one.info.run_id, name)]
    return {name: sorted(points) for name, points in curves.items()}


def until(true: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def sinks_of(folder: Path) -> list[int]:
    """Processes of sinks that have a file below the folder open."""
    pids = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"spin_core.trackers.sink" in cmdline.read_bytes() and any(
                str(folder) in os.readlink(fd) for fd in (cmdline.parent / "fd").iterdir()
            ):
                pids.append(int(cmdline.parent.name))
        except OSError:
            continue
    return pids
