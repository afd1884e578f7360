"""Runs missing steps as flow runs of their stage's deployment, on a work pool.

The store is the cache and Prefect's idempotency key the lock: whoever needs the same steps at the same time finds the
same flow run, also a run that was killed and started again. What a flow run computed is read from the store; nothing
but its state comes through Prefect.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as own_flow_run

from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.runtime.redo import Redone
from spin_core.runtime.step import KeyedStep, Step, look_up
from spin_core.sources.resolve import Ref
from spin_core.store.store import Record, Store
from tasks.runner.pool_run import CANCELLED, FINAL, LOOK_SECONDS, PoolRun, Send, batch_key
from tasks.runner.redo import answer


class Batch:
    """Steps that differ in their prompts alone, for one flow run, so that it loads the model once. Not a dataclass:
    Prefect would walk through it as a parameter of each of them."""

    def __init__(self, shards: list[tuple[Step, Ref]]):
        self.shards = shards  # each with its prompts
        self._steps: dict[str, KeyedStep] = {}

    def steps(self, first: KeyedStep) -> dict[str, KeyedStep]:
        """All of them by their keys, given one of them. Made once: 300 steps that each make 300 keys are a minute."""
        if not self._steps:
            reads = [(step, {**first.inputs, "prompts": prompts}) for step, prompts in self.shards]
            every = [KeyedStep(step, inputs, first.takes) for step, inputs in reads]
            self._steps = {one.key: one for one in every}
        return self._steps


class Pools:
    """The work pools of one run. A context manager: a run that is cancelled cancels the flow runs that it started;
    one that dies leaves them at work, and finds them again when it is started again."""

    def __init__(self, store: Store, runtime: Runtime, default: str):
        """`default`: the pool of stages that `runtime.pools` leaves empty; `here` is no pool."""
        self.store, self.runtime, self.default = store, runtime, default
        self.ending = threading.Event()
        self._lock = threading.Lock()
        self._shared: dict[str, PoolRun] = {}
        self._there: dict[str, dict[str, KeyedStep]] = {}  # of those that are computed again

    def of(self, stage: str) -> str:
        """The work pool of a stage; empty where it runs in this process."""
        name = self.runtime.pools.of(stage, self.default)
        return "" if name == "here" else name

    def compute(self, keyed: KeyedStep, batch: Batch | None, send: Send) -> tuple[Record, bool]:
        """The step's record as soon as it is in the store, and whether another run had started its computation."""
        stage = keyed.step.stage
        with self._lock:
            steps = batch.steps(keyed) if batch else {keyed.key: keyed}
            shared = self._shared.get(batch_key(steps)) or PoolRun(
                self.client, self.store, self.runtime, self.of(stage), steps
            )
            self._shared[shared.key] = shared
        while True:
            # Before the flow run is looked at: what is published stays true, whatever became of the rest of the batch.
            if self.store.recorded(stage, keyed.key) and (record := look_up(self.store, keyed)):
                return record, not shared.ours
            run = shared.look(send, self.ending)
            if run and run.state_type in FINAL:
                if record := look_up(self.store, keyed):
                    return record, not shared.ours
                shared.judge(run)
            self.ending.wait(min(shared.pause, LOOK_SECONDS))

    def again(self, keyed: KeyedStep, batch: Batch | None, how: str, send: Send) -> Redone | None:
        """What came of a step that the pool computes again though its output is there; `how`: `compare` or `replace`.
        None where it was not there when the first step of its batch came here."""
        stage = keyed.step.stage
        with self._lock:
            steps = batch.steps(keyed) if batch else {keyed.key: keyed}
            name = f"{batch_key(steps)}:{how}"
            if name not in self._there:  # once: what is computed for the first time meanwhile is not computed again
                self._there[name] = {key: one for key, one in steps.items() if look_up(self.store, one)}
            there = self._there[name]
            if keyed.key not in there:
                return None
            shared = self._shared.get(name) or PoolRun(
                self.client, self.store, self.runtime, self.of(stage), there, how
            )
            self._shared[name] = shared
        while True:
            run = shared.look(send, self.ending)
            if run and run.state_type in FINAL:
                if run.state_type is StateType.COMPLETED:
                    first_time, otherwise = _answer(run, shared)
                    if keyed.step.title in first_time:
                        return None
                    key, files, take = otherwise.get(keyed.step.title, ("", [], 0))
                    if record := self.store.lookup(stage, key) if key else look_up(self.store, keyed):
                        return Redone(record, files, take)
                shared.judge(run)
            self.ending.wait(min(shared.pause, LOOK_SECONDS))

    def __enter__(self) -> Pools:
        self.client = get_client(sync_client=True).__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.ending.set()
        try:
            if kind and not issubclass(kind, Exception) and (kind is KeyboardInterrupt or self._cancelled()):
                for shared in list(self._shared.values()):
                    with suppress(httpx.HTTPError, ObjectNotFound):  # one that is gone keeps no other from being ended
                        shared.cancel()
        finally:
            self.client.__exit__(None, None, None)

    def _cancelled(self) -> bool:
        """Whether this run was cancelled, and not only its process ended: then another one goes on."""
        if not own_flow_run.id:
            return False
        with suppress(httpx.HTTPError, ObjectNotFound):
            return self.client.read_flow_run(own_flow_run.id).state_type in CANCELLED
        return False


def _answer(run: FlowRun, shared: PoolRun) -> tuple[list[str], dict[str, tuple[str, list[str], int]]]:
    """What a flow run says came of its steps (`redo.answer`)."""
    try:
        return answer((run.state and run.state.message) or "", [one.step.title for one in shared.steps.values()])
    except (ValueError, KeyError, TypeError):
        raise BadInput(
            f"{shared.title}: its run {run.name} on {shared.pool} does not say that it computed the step again; "
            "install the same version of spinloop there."
        ) from None
