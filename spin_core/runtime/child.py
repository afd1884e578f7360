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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spin_core import errors
from spin_core.config.runtime import Runtime
from spin_core.config.stage_table import TRAINING
from spin_core.errors import BadInput, ChildDied, StageFailed, Stopped
from spin_core.runtime import launch
from spin_core.runtime.launch import RANKS, UTF8, python_path
from spin_core.runtime.leader import Leader
from spin_core.runtime.meeting import RANK

LAST_LINES = 20
GROUP_SECONDS = 5.0
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


@dataclass(frozen=True)
class Launch:
    """Several processes in place of one: the launcher's command, and what it needs in its environment."""

    command: list[str]
    environment: dict[str, str]
    call: Callable[[Callable[[str], None], Callable[[str], None]], None] | None = None
    """Calls the other nodes, where there are some: what to show while it waits, and when one is lost."""
    release: Callable[[], None] = lambda: None
    """Lets them know that it is over."""


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
        self._rubbish = self._lost = ""
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
            event = _event(line)
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
                    if kind is ChildDied:  # an engine died in it: what is left is of no use
                        self.kill()
                        raise ChildDied(event["message"] + self._tail())
                    answered = not self.together  # of several, the others may wait for the one that failed
                    raise kind(event["message"])
                else:
                    answered = True
                    summary: dict = event["done"]
                    return summary
            how = self._how_it_ended()
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
        if expired:
            raise StageFailed(f"{stage}: ended after runtime.stage_timeout = {timeout:g} s.")
        raise ChildDied(f"{stage}: its process {how}.{self._tail()}")

    def stop(self) -> None:
        """A training writes a checkpoint and ends by itself; anything else is ended. Either raises Stopped."""
        self._stopped = True
        if not self._training:
            self.kill()
            return
        for pid in list(_started_by(self.process.pid)) if self.together else [self.process.pid]:
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
                others = list(_started_by(self.process.pid)) if self.together else []
                with suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                for pid in others:  # in groups of their own; they would end by themselves, 0.2 s later
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for leader in (self.process.pid, *others):
            self._await_group(leader)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=1)

    def _await_group(self, leader: int) -> None:
        """Until nothing of the group is at work: an engine's own worker holds its GPU's memory for a moment after its
        SIGKILL, and the next engine asks what is free. Zombies have given theirs back (Linux; elsewhere no wait)."""
        until = time.monotonic() + GROUP_SECONDS
        while any(_members(leader)) and time.monotonic() < until:
            time.sleep(0.02)


def _event(line: str) -> dict | None:
    """What one line of a child's output says; None for what no worker writes."""
    with suppress(ValueError, RecursionError):
        event = json.loads(line)
        if not isinstance(event, dict) or type(event.get("job")) is not int:
            return None
        if isinstance(event.get("progress"), dict) or isinstance(event.get("done"), dict):
            return event
        if isinstance(event.get("error"), str) and isinstance(event.get("message"), str):
            return event
    return None


def _members(group: int) -> Iterator[int]:
    """Processes of the group that are no zombies."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of, *_ = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if of == str(group) and state not in "ZX":
                yield int(stat.parent.name)


def _started_by(parent: int) -> Iterator[int]:
    """Children of the process."""
    with suppress(OSError):
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            yield from map(int, file.read_text(encoding="utf-8").split())


@dataclass
class _Slot:
    """A place for one child; `process` says which jobs it can serve, `jobs` how many are in it now."""

    gpus: str = ""
    child: Child | None = None
    process: str = ""
    jobs: int = 0
    together: bool = False


class Children:
    """At most `count` children, started when first needed and kept for the next job. A context manager: none is left
    at its end.

    A job's `process` names the kind of child that it needs: "" for this interpreter, else one that serves this and
    nothing else (vLLM with one model), under the interpreter `python`; up to `share` such jobs are in one child.
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
        counted."""
        slot, child = self._enter(spec)
        try:
            began = time.monotonic()
            return child.run(spec, send, timeout), time.monotonic() - began
        finally:
            with self._free:
                slot.jobs -= 1
                self._free.notify_all()

    def _enter(self, spec: dict) -> tuple[_Slot, Child]:
        process, share, together = spec.get("process", ""), spec.get("share", 1), spec.get("together")
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
                self._end_others(process)
            # An idle child of the kind, then an empty place, then another kind's, and last one that is at work.
            slot = min(open_to, key=lambda s: (s.jobs, s.child is not None and s.process != process, s.child is None))
            if slot.child is None or slot.process != process or slot.child.process.poll() is not None:
                if slot.child is not None:
                    slot.child.kill()  # gives its memory back before the next one takes some
                launch = launched(together, self._leader) if together else None
                slot.child = Child(spec.get("python") or sys.executable, "" if together else slot.gpus, launch)
                slot.process, slot.together = process, bool(together)
            slot.jobs += 1
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

    def _end_others(self, process: str) -> None:
        """Ends what is idle and of another kind: several processes on all GPUs, and one on each, have no room beside
        each other."""
        for slot in self._slots:
            if slot.child is not None and slot.process != process and slot.jobs == 0:
                slot.child.kill()
                slot.child, slot.process, slot.together = None, "", False

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        with self._free:
            self._closed = True
            self._free.notify_all()
        for slot in self._slots:
            if slot.child is not None:
                slot.child.kill()
