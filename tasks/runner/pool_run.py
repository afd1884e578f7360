"""One flow run on a work pool that computes a batch of steps: found or started, looked at, judged, cancelled."""

from __future__ import annotations

import hashlib
import shlex
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as own_flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.states import Cancelled, Cancelling

from spin_core import errors
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput, ChildDied, SpinloopError, StageFailed, StoreError
from spin_core.job import title
from spin_core.runtime import launch
from spin_core.runtime.step import KeyedStep
from spin_core.sources.resolve import Ref
from spin_core.store.store import Store

CPU_POOL, GPU_POOL = "spin-cpu", "spin-gpu"  # in runs of deployments GPU_POOL is that of the stages that need a GPU
TRIES = 3  # flow runs for one batch: the first, and two more where a machine or its worker died
ATTEMPTS = 200  # of all runs ever; Prefect's answer has no more lines
LOOK_SECONDS = 0.4  # between looks at the store, which cost a stat; the server less and less often
POLL_SECONDS = (0.3, 3.0)  # of a flow run's state: at first, and after a while
UNCLAIMED_SECONDS = 60
SILENT_SECONDS = 600  # without an answer of the server; then a flow run is given up, while what computes goes on
UNSEEN_SECONDS = 30  # a network file system may show another machine's file so much later
FINAL = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}
CANCELLED = {StateType.CANCELLING, StateType.CANCELLED}
HOPELESS = (BadInput, StageFailed)  # the same input fails the same way, and a process that died was tried again there

Send = Callable[[dict], None]


class PoolRun:
    """The flow run of one batch, for all of its steps that wait for it."""

    def __init__(
        self,
        client: SyncPrefectClient,
        store: Store,
        runtime: Runtime,
        pool: str,
        steps: dict[str, KeyedStep],
        redo: str = "",
    ):
        """`steps`: by their keys. `redo`: `compare` or `replace` for steps whose output is there, and which this run,
        and no other, has computed again."""
        self.client, self.store, self.runtime, self.pool, self.steps = client, store, runtime, pool, steps
        self.key = batch_key(steps)
        self._name = f"{store.identity()[:12]}:{self.key}"  # of another store's flow run nothing would be seen here
        self._redo = redo
        if redo:  # once for each run that asks; one that is resumed asks for the same
            self._name += f":{redo}:{own_flow_run.id}"
        first = next(iter(steps.values())).step
        many = title(first.stage, f"iter {first.place.iteration}, {len(steps)} shards")
        self.stage, self.title = first.stage, many if len(steps) > 1 else first.title
        self.ours, self.pause = False, POLL_SECONDS[0]
        self._lock = threading.Lock()
        self._run: FlowRun | None = None
        self._error: SpinloopError | None = None
        self._tries, self._next, self._noted = 0, 0, False
        self._looked = self._since = self._ended = self._silent = 0.0

    def look(self, send: Send, ending: threading.Event) -> FlowRun | None:
        """The flow run as it is now: found, or else started; None while the server does not answer. It is looked at no
        more often than every `pause`."""
        with self._lock:
            if self._error:
                raise self._error
            if ending.is_set():
                raise StageFailed(f"{self.title}: the run is being ended.")
            now = time.monotonic()
            if self._run is None:
                if self._silent and now - self._looked < POLL_SECONDS[1]:
                    return None
                try:
                    self._run = self._find() or self._start()  # safe to try again: the key names the run
                except httpx.HTTPError as error:
                    self._bear(error, now)
                    return None
                self._looked, self._since, self._noted, self.pause = now, now, False, POLL_SECONDS[0]
                self._ended = self._silent = 0.0
                how = "runs" if self.ours else "is being computed for another run, and waited for,"
                base = PREFECT_UI_URL.value()
                link = f"{base}/runs/flow-run/{self._run.id}" if base else str(self._run.id)
                send({"log": f"{self.title} {how} on {self.pool} as {self._run.name}: {link}"})
            elif now - self._looked >= self.pause and self._run.state_type not in FINAL:
                try:
                    self._run = self.client.read_flow_run(self._run.id)
                except ObjectNotFound:
                    gone = f"{self.title}: its run {self._run.name} was deleted; start this run again."
                    self._error = StageFailed(gone)
                    raise self._error from None
                except httpx.HTTPError:
                    pass  # a server that is restarted: what is at work goes on meanwhile
                self._looked, self.pause = now, min(POLL_SECONDS[1], self.pause * 1.1)
            self._note_unclaimed(self._run, send, now)
            return self._run

    def judge(self, ended: FlowRun) -> None:
        """A flow run ended and a step of it is not in the store: return where it is worth another look or try, else
        raise why not."""
        with self._lock:
            if self._error:
                raise self._error
            if self._run is None or self._run.id != ended.id:
                return  # another step of the batch went on already
            now = time.monotonic()
            self._ended = self._ended or now
            if ended.state_type is StateType.COMPLETED and now - self._ended < UNSEEN_SECONDS:
                return
            try:
                error = self._why(ended)
            except httpx.HTTPError as silent:
                self._bear(silent, now)
                return
            self._tries, self._silent = self._tries + 1, 0.0
            if self._tries == TRIES or isinstance(error, HOPELESS):
                self._error = error
                raise error
            self._run = None

    def _bear(self, error: httpx.HTTPError, now: float) -> None:
        """Raise `error` if the server means it, or has been busy or away for SILENT_SECONDS."""
        self._silent, self._looked = self._silent or now, now
        status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 500
        if (status < 500 and status not in (408, 429)) or now - self._silent > SILENT_SECONDS:
            self._error = StageFailed(f"{self.title}: Prefect's server does not take it: {error}")
            raise self._error from error

    def cancel(self) -> None:
        """Cancel the flow run if this run answers for it and it is still at work."""
        with self._lock:
            if not self.ours or self._run is None:
                return
            now = self.client.read_flow_run(self._run.id).state_type
            if now not in FINAL:  # one that no worker has begun has no worker to end it either
                state = Cancelled if now is StateType.SCHEDULED else Cancelling
                self.client.set_flow_run_state(self._run.id, state(message="The run that started it was cancelled."))

    def _find(self) -> FlowRun | None:
        """The flow run that is at work on this batch, whoever started it; or the one that has just finished it."""
        names = [f"{self._name}:{n}" for n in range(ATTEMPTS)]
        ours = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=names))
        earlier = self.client.read_flow_runs(flow_run_filter=ours)
        # Not their number: a person may have deleted some.
        self._next = 1 + max((int((run.idempotency_key or "").rpartition(":")[2]) for run in earlier), default=-1)
        self.ours = False
        for run in earlier:
            if run.state_type not in FINAL | CANCELLED:
                self.ours = self._is_ours(run)
                return run
        done = [run for run in earlier if run.state_type is StateType.COMPLETED]
        return done[0] if done and all(self.store.recorded(self.stage, key) for key in self.steps) else None

    def _start(self) -> FlowRun:
        deployment = f"{self.stage}/{self.pool}"
        work = []
        for key, one in self.steps.items():
            inputs = {name: _plain(value) for name, value in one.inputs.items()}
            item = {"label": one.step.label, "place": one.step.place.as_json(), "key": key, "inputs": inputs}
            work.append(item | ({"take": one.take} if one.take else {}) | ({"redo": self._redo} if self._redo else {}))
        parameters = {
            "config": one.step.config.model_dump(mode="json"),
            "work": work,
            "runtime": self.runtime.model_dump(mode="json", exclude={"pools", "approve", "generate_runs", "trackers"}),
            "store": self.store.identity(),
        }
        try:
            started = run_deployment(
                deployment,
                parameters=parameters,
                idempotency_key=f"{self._name}:{self._next}",
                flow_run_name=f"{self.title} {self.key[:6]}{', computed again' if self._redo else ''}",
                tags=["spinloop"],
                job_variables=machines(self.stage, self.runtime),
                timeout=0,  # do not wait: every step of the batch looks for itself
            )
        except ObjectNotFound:
            raise BadInput(
                f"runtime.pools.{self.stage}: the server has no deployment {deployment}; add it to "
                "deployments/prefect.yaml and run `spinloop deploy`, or name another pool."
            ) from None
        run = cast(FlowRun, started)
        self.ours = self._is_ours(run)  # not where another run was quicker by a moment
        return run

    def _is_ours(self, run: FlowRun) -> bool:
        """Whether this run is to answer for a flow run: it started it, or who did has ended (killed, for one)."""
        parent, state = self._parent(run)
        return parent is not None and (str(parent) == own_flow_run.id or state is None or state in FINAL)

    def _parent(self, run: FlowRun) -> tuple[UUID | None, StateType | None]:
        """The flow run that started this one, if one did, and its state, if it was not deleted."""
        if run.parent_task_run_id is None:
            return None, None
        parent = self.client.read_task_run(run.parent_task_run_id).flow_run_id
        with suppress(ObjectNotFound):
            return parent, self.client.read_flow_run(parent).state_type if parent else None
        return parent, None

    def _why(self, ended: FlowRun) -> SpinloopError:
        """What became of a flow run that left a step undone, as the error to raise or to try again after."""
        message = (ended.state and ended.state.message) or ""
        place = f"{self.title}: its run {ended.name} on {self.pool}"
        if ended.state_type is StateType.COMPLETED:
            return StoreError(
                f"{place} ended well, but its output is not in {self.store.root}; every worker must see this store."
            )
        if ended.state_type is StateType.CANCELLED:
            if self._parent(ended)[1] in CANCELLED:
                return SpinloopError(f"{place} was cancelled together with the run that had started it.")
            return StageFailed(f"{place} was cancelled, by a person or the time-out; start this run again to go on.")
        kind, _, sentence = message.partition(": ")
        if ended.state_type is StateType.FAILED and (error := getattr(errors, kind, None)):
            return (StageFailed if error is ChildDied else error)(f"{sentence} (on {self.pool})")
        how = ended.state_type.value.lower() if ended.state_type else ""
        if command := moved(self.client, self.pool, message):
            return StageFailed(f"{place} ended {how}: {command}")
        return SpinloopError(f"{place} ended {how}: {message}")

    def _note_unclaimed(self, run: FlowRun, send: Send, now: float) -> None:
        waiting = run.state_type in (StateType.SCHEDULED, StateType.PENDING)
        if waiting and not self._noted and now - self._since > UNCLAIMED_SECONDS:
            self._noted = True
            note = (
                f"no worker of {self.pool} has begun it for {UNCLAIMED_SECONDS} s: the pool's limit is reached, or no "
                f"worker is there (`prefect worker start --pool {self.pool}`)."
            )
            send({"note": note})


def moved(client: SyncPrefectClient, pool: str, message: str) -> str:
    """What is to be said of a flow run that could not start since the program is gone that its process pool starts
    runs with; empty where it is there, or something else is wrong. Prefect says `unhandled errors in a TaskGroup`."""
    if "could not start" not in message:
        return ""
    command = ""
    with suppress(ObjectNotFound, KeyError):
        command = client.read_work_pool(pool).base_job_template["variables"]["properties"]["command"]["default"] or ""
    program = next(iter(shlex.split(command)), "")
    if not program.startswith("/") or Path(program).exists():
        return ""
    return (
        f"the pool's stored command, `{command}`, names a program that is not there (a checkout that was moved?); "
        "where it is now, make its .venv anew (`rm -r .venv; make setup`) and run `spinloop deploy`; then start "
        "this run again."
    )


def machines(stage: str, runtime: Runtime) -> dict[str, int]:
    """Job variables of a stage that several nodes share, for pools that have these (deployments/pools)."""
    wanted = {"nodes": runtime.compute.nodes, "gpus": runtime.compute.processes * (runtime.device != "cpu")}
    return wanted if runtime.compute.nodes > 1 and launch.wanted(stage, runtime) else {}


def batch_key(every: Iterable[str]) -> str:
    """The key of steps that one flow run computes: of all of the batch, so that it stays the same while they finish."""
    listed = list(every)
    return listed[0] if len(listed) == 1 else hashlib.sha256("".join(listed).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A Ref, or a list of them, as JSON without the fields that say nothing."""
    if isinstance(value, Ref):
        return {name: held for name, held in vars(value).items() if held}
    return [_plain(one) for one in value]
