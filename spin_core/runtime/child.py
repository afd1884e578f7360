"""Runs jobs in child processes, and makes sure that none outlives its purpose.

Covered: time-out, a parent that ends in any way (the child sees its standard input end), a child that dies in any way
(its guard sees it and ends its process group, so that no engine's own worker keeps a GPU; its last lines of output are
in the error). Not covered: a child stopped with SIGSTOP, when there is no time-out; a process that left the group.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from spin_core import errors
from spin_core.config.runtime import Runtime
from spin_core.config.stage_table import TRAINING
from spin_core.errors import BadInput, ChildDied, NotReloaded, StageFailed, Stopped
from spin_core.runtime import launch, proc
from spin_core.runtime.events import event_of
from spin_core.runtime.launch import RANKS, UTF8, Launch, python_path
from spin_core.runtime.leader import Leader
from spin_core.runtime.meeting import RANK

LAST_LINES = 20
REST_SECONDS = 60.0
# Reckoned, not measured: a training holds four for each weight; its activations and another stage's model are taken
# for one each.
ROOM = 6
LIBRARY_BYTES = 2 << 30  # as reckoned: torch and the other libraries of two processes
FRESH = 3  # engines that are started for one job at most
ENDING_SECONDS = 5.0  # from the end of its output to its own: the kernel takes the memory first
RUBBISH = 100  # characters of it that are shown


def launched(runtime: dict, leader: Leader | None = None) -> Launch:
    """The launcher of the processes that `runtime.compute` asks for; `leader`: of several nodes this process's part.
    Raises BadInput where it has none."""
    how = Runtime.model_validate(runtime)
    command = launch.command(sys.executable, how.compute)
    if how.compute.nodes == 1:
        return Launch(command, launch.environment(how, launch.free_port()))
    if leader is None:
        raise BadInput(
            f"runtime.compute.nodes is {how.compute.nodes}, and this process was started as none of them; set {RANK[0]}"
            "=0 here and start `spinloop join` on the others (docs/multi-node.md), or set it to 1."
        )
    port = launch.free_port(leader.address)
    own = launch.environment(how, port, 0, leader.address)
    return Launch(command, own, partial(leader.call, how.compute, how.device, port), leader.release)


class Child:
    """One process in its own process group. It serves one job at a time, or several that share an engine."""

    def __init__(self, python: str = sys.executable, gpus: str = "", launch: Launch | None = None) -> None:
        """`launch`: start several processes that do each job together, on this node and on those that have joined."""
        shown = {"CUDA_VISIBLE_DEVICES": gpus} if gpus else {}
        self.together = launch is not None
        self._call, self._release = (launch.call, launch.release) if launch else (None, lambda: None)
        command = launch.command if launch else [python, "-P", "-m", "spin_core.runtime.worker"]
        inherited = {name: value for name, value in os.environ.items() if name not in RANKS}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env={
                **inherited,
                **UTF8,
                "PYTHONPATH": python_path(python),
                **shown,
                **(launch.environment if launch else {}),
            },
        )
        self._lock = threading.Lock()
        self._writing = threading.Lock()  # not the lock above: a child that does not read must still be killable
        self._jobs: dict[int, queue.Queue[dict | None]] = {}
        self._count = 0
        self._eof = False
        self._ended = self._stopped = self._training = False
        self._rubbish = self._lost = self._stale = ""
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._keep_last, self._deal)]
        for thread in self._threads:
            thread.start()

    def _keep_last(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.last.append(line.rstrip())

    def _deal(self) -> None:
        """Hands each event to the job that it is of; None to all when the process ended or broke the protocol."""
        assert self.process.stdout
        for line in self.process.stdout:
            event = event_of(line)
            if event is None:
                self._rubbish = line[:RUBBISH]
                break
            with self._lock:
                if event["job"] in self._jobs:
                    self._jobs[event["job"]].put(event)
        with self._lock:
            self._eof = True
            for events in self._jobs.values():
                events.put(None)

    def run(self, spec: dict, send: Callable[[dict], None], timeout: float = 0) -> dict:
        """The summary of the job. Raises what the stage raised; ChildDied when there is no answer; StageFailed after
        `timeout` seconds. Without an answer the process is ended, and with it every other job in it."""
        events: queue.Queue[dict | None] = queue.Queue()
        with self._lock:
            self._count += 1
            job = self._count
            self._training = spec["stage"] in TRAINING
            self._jobs[job] = events
            if self._eof:
                events.put(None)
        answered = expired = False
        try:
            if self._call:
                self._call(lambda text: send({"note": text}), self._lose)
                self._call = None
            self._give({**spec, "job": job})
            until = time.monotonic() + timeout
            while event := events.get(timeout=max(0.0, until - time.monotonic()) if timeout else None):
                if "progress" in event:
                    send(event["progress"])
                elif "error" in event:
                    kind = getattr(errors, event["error"], StageFailed)
                    if kind is NotReloaded:  # its other jobs were to be answered by the same engine
                        self._stale = event["message"]
                        break
                    if kind is ChildDied:  # an engine died in it: what is left is of no use
                        self.kill()
                        raise ChildDied(event["message"] + self._tail())
                    answered = not self.together  # of several, the others may wait for the one that failed
                    raise kind(event["message"])
                else:
                    answered = True
                    summary: dict = event["done"]
                    return summary
            how = "" if self._stale else self._how_it_ended()
        except queue.Empty:
            expired = True
        finally:
            with self._lock:
                del self._jobs[job]
            if not answered:  # whatever ended the wait, its answer must not be taken for the next job's
                self.kill()
        stage = spec["stage"]
        if self._stopped:
            raise Stopped(f"{stage}: ended by SIGTERM; the same command goes on from what is in the store.")
        if self._stale:
            raise NotReloaded(self._stale)
        if expired:
            raise StageFailed(f"{stage}: ended after runtime.stage_timeout = {timeout:g} s.")
        raise ChildDied(f"{stage}: its process {how}.{self._tail()}")

    def rest(self, engine: str) -> bool:
        """Let its engine, of the module `engine`, give back what it can; whether it may be kept so: where what is free
        then holds ROOM float32 numbers for each of its model's weights, and LIBRARY_BYTES."""
        try:
            weights = self.run({"stage": "rest", "rest": engine}, lambda event: None, REST_SECONDS)["kept"]
        except StageFailed:
            return False
        free = proc.available()
        return weights is not None and (free is None or 4 * ROOM * weights + LIBRARY_BYTES <= free)

    def stop(self) -> None:
        """A training writes a checkpoint and ends by itself; anything else is ended. Either raises Stopped."""
        self._stopped = True
        if not self._training:
            self.kill()
            return
        for pid in list(proc.started_by(self.process.pid)) if self.together else [self.process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _lose(self, why: str) -> None:
        self._lost = why
        self.kill()

    def _give(self, spec: dict) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError), self._writing:
            self.process.stdin.write(json.dumps(spec) + "\n")
            self.process.stdin.flush()

    def _how_it_ended(self) -> str:
        """In words, of a process that gave no answer; one that is still there has closed its output or broken the
        protocol, and is ended after this."""
        if self._lost:
            return f"was ended, as {self._lost}"
        if self._rubbish:
            return f"wrote what is no answer ({self._rubbish!r}) and was ended"
        try:
            code = self.process.wait(timeout=ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its output without an answer and was ended"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
        return f"ended without an answer, {how}{hint}"

    def _tail(self) -> str:
        return "".join(f"\n  | {line}" for line in self.last)

    def kill(self) -> None:
        """End the process and every process that it started. Once: a reaped process's number may be another's by
        now."""
        others: list[int] = []
        with self._lock:
            if not self._ended:
                self._ended = True
                self._release()
                others = list(proc.started_by(self.process.pid)) if self.together else []
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                for pid in others:  # in groups of their own; they would end by themselves, 0.2 s later
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for leader in (self.process.pid, *others):
            proc.await_end(leader)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=1)


@dataclass
class _Slot:
    """A place for one child at work; `process` says which jobs it can serve, `jobs` how many are in it now. `keep`: of
    which engine's module it is kept for the next model. `resting`: one that is kept while another child is here, and
    the engine that it is of."""

    gpus: str = ""
    child: Child | None = None
    process: str = ""
    jobs: int = 0
    together: bool = False
    keep: str = ""
    resting: Child | None = None
    rests: str = ""

    def has(self, process: str, keep: str) -> int:
        """0: a child of the kind; 1: one of its engine; 2: no child; 3: another kind's."""
        if self.child is not None and self.process == process:
            return 0
        if keep and keep in (self.keep, self.rests):
            return 1
        return 2 if self.child is None else 3

    def leave(self) -> None:
        """Set the idle child aside where it is kept, or end it, which gives its memory back; before another one
        starts."""
        child, self.child = self.child, None
        if child is not None:
            if self.keep and child.process.poll() is None and child.rest(self.keep):
                if self.resting is not None:
                    self.resting.kill()
                self.resting, self.rests = child, self.keep
            else:
                child.kill()
        self.process, self.together, self.keep = "", False, ""

    def take(self, keep: str) -> Child | None:
        """The child that is kept of this engine, at work again; None where none is, or it has died meanwhile."""
        child = None
        if keep and self.rests == keep:
            child, self.resting, self.rests = self.resting, None, ""
            if child is not None and child.process.poll() is not None:
                child.kill()
                child = None
        return child

    def end(self) -> None:
        """End what is here."""
        for child in (self.child, self.resting):
            if child is not None:
                child.kill()


class Children:
    """At most `count` children at work, started when first needed and kept for the next job. A context manager: none is
    left at its end.

    A job's `process` names the kind of child that it needs: "" for this interpreter, else one that serves this and
    nothing else (vLLM with one model), under the interpreter `python`; up to `share` such jobs are in one child.
    With `keep`, a module of an engine, a child is not ended for another kind's, but rests (`Child.rest`), and serves
    the next kind that has the same `keep`; what it cannot serve it refuses (NotReloaded), and a new one is started.
    A job with `together` (a `Runtime`) is done by several processes, which have the machine for themselves.
    `gpus`: CUDA_VISIBLE_DEVICES of each place. `leader`: of a run over several nodes.
    """

    def __init__(self, count: int, gpus: Sequence[str] = (), leader: Leader | None = None) -> None:
        self._leader = leader
        self._slots = [_Slot(gpus[i] if gpus else "") for i in range(count)]
        self._closed = self._stopping = False
        self._free = threading.Condition()

    def run(self, spec: dict, send: Callable[[dict], None], timeout: float = 0) -> tuple[dict, float]:
        """Wait for a free place and run the job in its child: the summary, and the seconds it took, the wait not
        counted. Its `engine_restarts`: how often a kept engine could not serve the model, and a new one was started,
        which is noted."""
        restarts, spent = 0, 0.0
        while True:
            slot, child = self._enter(spec)
            began = time.monotonic()
            try:
                summary = child.run(spec, send, timeout)
                again = {"engine_restarts": restarts} if restarts else {}
                return summary | again, time.monotonic() - began + spent
            except NotReloaded as error:
                restarts, spent = restarts + 1, time.monotonic() - began + spent
                if restarts == FRESH:
                    raise
                send({"note": str(error)})
            finally:
                with self._free:
                    slot.jobs -= 1
                    self._free.notify_all()

    def _enter(self, spec: dict) -> tuple[_Slot, Child]:
        process, share, together = spec.get("process", ""), spec.get("share", 1), spec.get("together")
        keep = spec.get("keep", "")
        with self._free:
            while True:
                if self._stopping:
                    raise Stopped(f"{spec['stage']}: not begun, as SIGTERM came; the same command goes on from there.")
                if self._closed:
                    raise StageFailed(f"{spec['module'].rpartition('.')[2]}: the run is being ended.")
                open_to = [s for s in self._slots if s.jobs == 0 or (s.process == process and s.jobs < share)]
                idle = all(s.jobs == 0 for s in self._slots)
                if open_to and (idle if together else not any(s.jobs and s.together for s in self._slots)):
                    break
                self._free.wait()
            if together or any(s.together for s in self._slots):
                self._leave_others(process)
            slot = min(open_to, key=lambda s: (s.jobs, s.has(process, keep)))  # last one that is at work
            alive = slot.child is not None and slot.child.process.poll() is None
            if not (alive and (slot.process == process or (keep and slot.keep == keep))):
                slot.leave()
                slot.child = slot.take(keep)
                if slot.child is None:
                    launch = launched(together, self._leader) if together else None
                    slot.child = Child(spec.get("python") or sys.executable, "" if together else slot.gpus, launch)
            slot.process, slot.together, slot.keep = process, bool(together), keep
            slot.jobs += 1
            assert slot.child is not None
            return slot, slot.child

    def stop(self) -> None:
        """No job begins any more, and those at work end, which this waits for (`Child.stop`)."""
        with self._free:
            self._stopping = True
            self._free.notify_all()
            busy = [slot.child for slot in self._slots if slot.child is not None and slot.jobs]
        for child in busy:
            child.stop()
        with self._free:
            while any(slot.jobs for slot in self._slots):
                self._free.wait()

    def _leave_others(self, process: str) -> None:
        """Of what is idle and of another kind: several processes on all GPUs, and one on each, have no room beside
        each other."""
        for slot in self._slots:
            if slot.child is not None and slot.process != process and slot.jobs == 0:
                slot.leave()

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        with self._free:
            self._closed = True
            self._free.notify_all()
        for slot in self._slots:
            slot.end()
