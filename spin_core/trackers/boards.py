"""The trackers: how each one's board of a run is opened, again where it is there, and which figures it has by now.

All write through accelerate's tracker of that name. A board is append-only, so it is asked what it has (`there`), and
a figure is sent once. Runs in the sink's process alone: libraries are imported here, and settings of theirs are
environment variables, which the user's own precede.
"""

from __future__ import annotations

import json
import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.trackers.redact import LOGIN

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Point = tuple[str, int]
"""The name of a curve, and a place on the axis."""
QUIET = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own are 120 s, seven times: ten minutes for a server that is down.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_ERROR_REPORTING": "false",
}
"""No telemetry, no source code, no output; short waits."""


@dataclass(frozen=True)
class Identity:
    """Whose board it is. `folder`: where trackers that keep files keep them."""

    project: str
    run: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)


class Board:
    """One run in a tracker. Its methods raise whatever the library raises."""

    tracker: GeneralTracker
    place: str
    """Where a person finds it."""

    def __init__(self, of: Identity) -> None:
        raise NotImplementedError

    def log(self, values: dict[str, float], step: int) -> None:
        """Append figures at a place of the axis."""
        self.tracker.log(values, step=step)

    def there(self) -> set[Point]:
        """What the board has by now, whoever sent it."""
        raise NotImplementedError

    def close(self) -> None:
        """All that was logged is kept."""
        self.tracker.finish()


class TensorBoard(Board):
    """Event files; each process that goes on with a run adds one to its folder."""

    def __init__(self, of: Identity) -> None:
        from accelerate.tracking import TensorBoardTracker

        root = of.folder / "tensorboard"
        self._run = root / of.project / of.run
        fresh = not any(self._run.glob("events.*"))
        self.place = f"tensorboard --logdir {root}"
        self.tracker = TensorBoardTracker(of.run, root / of.project)
        self.tracker.start()
        if fresh:  # as text: its table of hyperparameters would be a second run in the list of runs
            profile = "".join(f"    {name}: {value}\n" for name, value in of.config.items())
            self.tracker.writer.add_text("profile", profile, 0)

    def there(self) -> set[Point]:
        """By tensorboard's own reader, which stops in a file at a record that a kill cut off."""
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        read = EventAccumulator(str(self._run), size_guidance={SCALARS: 0}, purge_orphaned_data=False).Reload()
        return {(tag, event.step) for tag in read.Tags()["scalars"] for event in read.Scalars(tag)}


class MLflow(Board):
    """A run of the experiment that is named as the profile, recognised by its tag; on the server of
    $MLFLOW_TRACKING_URI, or in a database of the store."""

    TAG = "spinloop.run"

    def __init__(self, of: Identity) -> None:
        import mlflow
        from accelerate.tracking import MLflowTracker

        folder, server = of.folder / "mlflow", os.environ.get("MLFLOW_TRACKING_URI", "")
        uri = server or f"sqlite:///{folder / 'mlflow.db'}"
        if not server:
            folder.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", of.project)
        experiment = mlflow.get_experiment_by_name(name)
        artifacts = None if server else (folder / "artifacts").as_uri()
        number = experiment.experiment_id if experiment else mlflow.create_experiment(name, artifacts)
        self._client = mlflow.MlflowClient()
        found = self._client.search_runs([number], f"tags.`{self.TAG}` = '{of.run}'", max_results=1)
        # MLflow would note the user's name and the path of the program.
        tags = {self.TAG: of.run, "mlflow.source.name": "spinloop", "mlflow.user": "spinloop"}
        same = found[0].info.run_id if found else None
        self.tracker = MLflowTracker(name, run_id=same, run_name=of.run, tags=tags)
        self.tracker.start()
        self._id = self.tracker.tracker.info.run_id
        if not found:  # a parameter cannot change later
            self.tracker.store_init_configuration(dict(of.config))
        self.place = f"{LOGIN.sub('', uri)}, experiment {name}"

    def there(self) -> set[Point]:
        names = self._client.get_run(self._id).data.metrics
        return {(name, one.step) for name in names for one in self._client.get_metric_history(self._id, name)}


class Trackio(Board):
    """A run of trackio's local database ($TRACKIO_DIR), or where the user has set $TRACKIO_SPACE_ID or
    $TRACKIO_SERVER_URL, there."""

    def __init__(self, of: Identity) -> None:
        from accelerate.tracking import TrackioTracker

        self._of, how = of, {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        self.tracker = TrackioTracker(of.project, name=of.run, resume="allow", config=dict(of.config), **how)
        self.tracker.start()
        self._sent = Sent(of, "trackio") if remote_trackio() else None
        self.place = f"trackio show --project {of.project}"

    def log(self, values: dict[str, float], step: int) -> None:
        super().log(values, step)
        if self._sent:
            self._sent.add(values, step)

    def there(self) -> set[Point]:
        if self._sent:
            return self._sent.points()
        from trackio.sqlite_storage import SQLiteStorage

        lines = SQLiteStorage.get_logs(self._of.project, self._of.run)
        return {(name, line["step"]) for line in lines for name in line if name not in ("step", "timestamp")}


class Wandb(Board):
    """A run with an id of its own; offline unless the user has logged in or set $WANDB_MODE. Its own step can only
    grow, and a figure may come late: the axis is a figure of its own."""

    AXIS = "optimiser_step"

    def __init__(self, of: Identity) -> None:
        from accelerate.tracking import WandBTracker

        folder = of.folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        self.tracker = WandBTracker(
            of.project, name=of.run, id=of.run, resume="allow", mode=mode, dir=str(folder), config=dict(of.config),
            settings={"x_disable_meta": True, "x_disable_stats": True, "x_disable_machine_info": True, "host": "-"},
        )  # fmt: skip
        self.tracker.start()
        self.tracker.tracker.define_metric("*", step_metric=self.AXIS)
        self._sent = Sent(of, f"wandb-{mode}")
        where = f"wandb sync --append {folder}/wandb/offline-run-*" if mode == "offline" else "wandb.ai"
        self.place = where if mode == "offline" else str(self.tracker.tracker.url or where)

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log({**values, self.AXIS: step})
        self._sent.add(values, step)

    def there(self) -> set[Point]:
        return self._sent.points()


class Sent:
    """For a board that cannot be asked: a line for what it was sent. What was sent when the machine went down may be
    sent once more."""

    def __init__(self, of: Identity, kind: str) -> None:
        self._file = of.folder / "sent" / f"{of.run}.{kind}.jsonl"
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def add(self, values: Mapping[str, float], step: int) -> None:
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps([step, *values]) + "\n")

    def points(self) -> set[Point]:
        points: set[Point] = set()
        with suppress(FileNotFoundError):
            for line in self._file.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # a line that a kill cut off
                    step, *names = json.loads(line)
                    points |= {(name, step) for name in names}
        return points


def logged_in() -> bool:
    """Whether wandb would find a login: a key in the environment, or a line in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rpartition("/")[2]
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc().authenticators(host) is not None
    return False


def remote_trackio() -> bool:
    """Whether the user sends trackio's runs elsewhere."""
    return bool(os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))


BOARDS: dict[str, type[Board]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "trackio": Trackio, "wandb": Wandb}
