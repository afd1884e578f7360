"""The child process that stages run in: `python -m spin_core.runtime.worker`.

Jobs come in as JSON lines on standard input, events go out as JSON lines on what was standard output; prints of
libraries go to standard error, whose last lines the parent keeps for its error message. One child runs many jobs, so
a model that several shards need is loaded once. When standard input ends, the parent is gone (however it went,
SIGKILL included), and the child ends its whole process group; when the child itself is killed, its guard does. It needs
`spin_core` only: no Prefect.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import TextIO

from spin_core.config.runtime import Runtime
from spin_core.config.stage_table import SHARED
from spin_core.errors import SpinloopError, StageFailed
from spin_core.job import Job

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "svg",
}
HIDDEN = ("sklearn", "scipy", "boto3")
"""transformers and accelerate load these wherever they are installed, for what no stage uses (assisted decoding, losses
of object detection, SageMaker): 2.2 of the 7 s of a core that a stage's process needs to start. lm_eval's tasks may
need them."""

GUARD_SECONDS = 0.2
RANK = int(os.environ.get("RANK", "0"))
LAUNCHED = int(os.environ.get("WORLD_SIZE", "1")) > 1
LAUNCHER = os.getppid()
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
LONGEST = 1000  # bytes of a message; as JSON at most 3,000 (a three-byte character is six)
SHARED_MODULES = tuple(f"spin_core.stages.{stage}" for stage in SHARED)
WRITING = threading.Lock()
ENDING = threading.Event()
"""This process was sent SIGTERM: by its parent, or by Slurm, which sends it to every process of a job."""


def main() -> None:
    """Serve jobs until standard input ends: one after the other, or side by side those that share an engine."""
    _start_guard()
    signal.signal(signal.SIGTERM, _asked_to_end)
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.Queue[str] = queue.Queue()
    if int(os.environ.get("LOCAL_RANK", "0")) == 0 or not LAUNCHED:  # on further nodes only to see its end
        threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    if LAUNCHED:
        threading.Thread(target=_end_with, args=(LAUNCHER,), daemon=True).start()
        _serve_together(jobs, events)
    while True:
        spec = json.loads(jobs.get())
        if spec.get("share", 1) > 1:
            threading.Thread(target=_serve, args=(spec, events), daemon=True).start()
        else:
            _serve(spec, events)


_WORKER = os.getpid()


def _asked_to_end(*_: object) -> None:
    """A training writes a checkpoint; what else is at work the parent ends, which was asked too. In a process that was
    forked from this one it is an end as any other."""
    if os.getpid() != _WORKER:
        os._exit(128 + signal.SIGTERM)
    ENDING.set()


def _serve_together(jobs: queue.Queue[str], events: TextIO) -> None:
    """One of several processes: each runs every job, and after an error, which may have left the others waiting for
    this one, all of them end."""
    from spin_core.runtime import process_group

    process_group.begin()
    while True:
        try:
            spec = process_group.broadcast(json.loads(jobs.get()) if RANK == 0 else None)
        except RuntimeError as error:
            if not _of_another(error):
                raise
            os._exit(1)  # between two jobs: another one has ended, as all do when the last job is done
        if not _serve(spec, events):
            os._exit(1)  # the launcher ends the others


def _start_guard() -> None:
    """A second process that does nothing but end the group when this one is gone: SIGKILL leaves no time to end an
    engine's own workers, and where the parent was killed too, nobody else would. A process that leads no group has
    none to end. Under a launcher each process leads a group of its own."""
    worker = os.getpid()
    if os.getpgrp() != worker or os.fork():
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(0, 1024)  # an open end of the parent's pipes would hide the death from the parent
    while os.getppid() == worker:
        time.sleep(GUARD_SECONDS)
    os.killpg(worker, signal.SIGKILL)


def _end_with(launcher: int) -> None:
    """The launcher's processes are in sessions of their own: killing its group does not reach them."""
    while os.getppid() == launcher:
        time.sleep(GUARD_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _read(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    if LAUNCHED and os.getppid() == LAUNCHER:
        os.kill(LAUNCHER, signal.SIGKILL)  # with it go all its processes
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _serve(spec: dict, events: TextIO) -> bool:
    """Run a job and say how it went; whether it went well. Of several processes the first reports progress and the
    result, and each its own error: the parent takes the first that comes."""

    def send(event: dict) -> None:
        with WRITING:
            events.write(json.dumps({"job": spec["job"], **event}) + "\n")

    try:
        done = run_spec(spec, (lambda event: send({"progress": event})) if RANK == 0 else lambda event: None)
        if RANK == 0:
            send({"done": done})
        return True
    except SpinloopError as error:
        send({"error": type(error).__name__, "message": _short(str(error))})
    except BaseException as error:
        traceback.print_exc()
        kind = "ChildDied" if LAUNCHED and _of_another(error) else "StageFailed"
        send({"error": kind, "message": _short(_sentence(spec, error))})
    return False


def _of_another(error: BaseException) -> bool:
    """Whether it only says that another process is gone."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST)


def _short(message: str) -> str:
    """Several processes write to one pipe: up to 4096 bytes a line is written at once (PIPE_BUF)."""
    return message.encode()[:LONGEST].decode(errors="ignore") if LAUNCHED else message


def _sentence(spec: dict, error: BaseException) -> str:
    """An unexpected error in a sentence. Running out of memory or disk has one with a remedy."""
    stage = spec["stage"]
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return (
            f"{stage}: out of memory; lower runtime.micro_tokens, runtime.score_tokens, runtime.generate_batch or, for "
            "vLLM, runtime.requests_in_flight or vllm_kv_gib."
        )
    if LAUNCHED and _of_another(error):
        why = str(error).strip().splitlines()[0][:200]
        return f"{stage}: another of its processes ended without an answer (often: out of memory; here: {why})."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{stage}: the disk is full ({spec['out']}); free space or name another --store, and run again."
    if isinstance(error, OSError):
        return f"{stage}: {error.strerror or error} ({error.filename or spec['out']})."
    return f"{stage}: {type(error).__name__}: {error}"


def run_spec(spec: dict, send) -> dict:
    """Run one job's stage here and return its summary, or let the engine of a kept process rest. Raises StageFailed
    where several processes are to run what they do not share: it may have come over the network."""
    if "rest" in spec:
        return {"kept": importlib.import_module(spec["rest"]).rest()}
    if LAUNCHED and spec["module"] not in SHARED_MODULES:
        raise StageFailed(f"{spec['module']}: no stage that several processes share, so it is not run.")
    for name in HIDDEN:
        if spec["stage"] != "harness":
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]
        elif sys.modules.get(name, sys) is None:
            del sys.modules[name]
    stage = importlib.import_module(spec["module"])
    inputs = {k: [Path(p) for p in v] if isinstance(v, list) else Path(v) for k, v in spec["inputs"].items()}
    job = Job(
        # Of several processes the first writes the output; what another one writes of its own is thrown away.
        out=Path(spec["out"] if RANK == 0 else tempfile.mkdtemp(prefix="spinloop-rank-")),
        scratch=Path(spec["scratch"]),
        runtime=Runtime.model_validate(spec["runtime"]),
        digests=spec["digests"],
        send=send,
        ending=ENDING,
    )
    try:
        summary: dict = stage.run(inputs, stage.Config.model_validate(spec["config"]), job)
    finally:
        if RANK != 0:
            shutil.rmtree(job.out, ignore_errors=True)
    return summary


if __name__ == "__main__":
    main()
