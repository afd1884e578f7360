"""Stages in forked processes, to be killed: torch is imported once, so that a trial takes a second and not twenty.

A fork does what a flow's process and its stage's process do between them: look the step up, on a miss compute it and
publish. `python -m tests.faults.flow.forks` is the server of the forks; `Forks` sends it requests.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from spin_core.config.runtime import Runtime
from spin_core.runtime.step import KeyedStep, Step, compute, look_up
from spin_core.sources.resolve import Ref
from spin_core.store.store import Store

ROOT = Path(__file__).parents[3]
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
KILLED = 137

Report = Callable[[dict], None]


@dataclass
class Done:
    """How a fork ended, and what it reported: `computing` (a miss), `step` (an optimiser step is done), `digest`."""

    status: int
    seconds: float
    events: list[dict] = field(default_factory=list)

    def _last(self, name: str) -> Any:
        return next((event[name] for event in reversed(self.events) if name in event), None)

    @property
    def digest(self) -> str | None:
        """Of the output, as it stands in the store; None: it did not come so far."""
        return self._last("digest")

    @property
    def computed(self) -> bool:
        """Whether it missed and began to compute."""
        return self._last("computing") is not None

    @property
    def resumed_at(self) -> int:
        """The optimiser step that training went on from."""
        return (self._last("summary") or {}).get("resumed_at", 0)

    @property
    def error(self) -> str:
        """What it raised."""
        return self._last("error") or ""

    @property
    def operations(self) -> int:
        """How often it changed or opened something in its scratch folder."""
        return self._last("operations") or 0


class Forks:
    """The server of the forks. A context manager."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.flow.forks"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"},
        )  # fmt: skip

    def run(self, request: dict, place: Path, **kill: float) -> Done:
        """One fork. `after`: seconds until it is killed, counted from its start or, with `step`, from that optimiser
        step; `operation`: it ends itself before that operation on its scratch folder; -1 counts them."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps({**request, "place": str(place), **kill}) + "\n")
        self.process.stdin.flush()
        return Done(**json.loads(self.process.stdout.readline()))

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=300)  # it may still import torch: 10 s on a quiet machine, 60 on a busy one


class Here:
    """In the place of child processes: the stage runs in this one."""

    def __init__(self, report: Report):
        self.report = report

    def run(self, spec: dict, send: Report, timeout: float = 0) -> tuple[dict, float]:
        from spin_core.runtime.worker import run_spec

        self.report({"computing": spec["module"]})
        began = time.monotonic()
        return run_spec(spec, send), time.monotonic() - began


def work(request: dict, report: Report) -> None:
    """What a fork does."""
    module = importlib.import_module(f"spin_core.stages.{request['stage']}")
    step = Step(module, "", module.Config.model_validate(request["config"]))
    inputs = {name: _refs(value) for name, value in request["inputs"].items()}
    store, runtime = Store(Path(request["place"])), Runtime.model_validate(request["runtime"])
    scratch = str(store.root / "scratch")
    seen = _count_operations(scratch, request["operation"]) if "operation" in request else []
    if "step" in request:
        _report_steps(report)
    with store.using():
        record = look_up(store, KeyedStep(step, inputs))
        if record is None:
            record, _ = compute(store, KeyedStep(step, inputs), runtime, Here(report), lambda event: None)  # type: ignore[arg-type]
    report({"digest": record.digest, "summary": record.facts["summary"], "operations": len(seen)})


def _refs(value: Any) -> Any:
    return [Ref(**one) for one in value] if isinstance(value, list) else Ref(**value)


def _report_steps(report: Report) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    steps = count(1)
    register_optimizer_step_post_hook(lambda *_: report({"step": next(steps)}))


def _count_operations(scratch: str, last: int) -> list[str]:
    """Ends the process before operation `last` below `scratch`. What lies deeper in a folder that is being removed is
    named relative to it."""
    seen: list[str] = []

    def hook(event: str, args: tuple) -> None:
        if event not in OPERATIONS:
            return
        relative = event in ("os.remove", "os.rmdir") and not str(args[0]).startswith("/")
        if relative or str(args[0]).startswith(scratch):
            if len(seen) == last:
                os._exit(KILLED)
            seen.append(event)

    sys.addaudithook(hook)
    return seen


def serve() -> None:
    """Fork for each line of standard input; an answer line each."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _warm()
    for line in sys.stdin:
        answers.write(json.dumps(vars(_forked(json.loads(line)))) + "\n")


def _warm() -> None:
    """Import what the stages do when they run. No tensor is computed here: autograd does not outlive a fork."""
    import torch

    torch.set_num_threads(1)
    for name in (
        "spin_core.training.loop", "spin_core.training.objectives", "spin_core.report.model_card",
        "spin_core.modeling.loading", "spin_core.modeling.collate", "spin_core.engines.transformers_engine",
        "spin_core.runtime.worker", "torch._dynamo", "pyarrow.parquet", "datasets",
        "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
    ):  # fmt: skip
        importlib.import_module(name)


def _forked(request: dict) -> Done:
    ready, write_end = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(ready)
            work(request, lambda event: _write(write_end, event))
            status = 0
        except BaseException as error:
            traceback.print_exc()
            _write(write_end, {"error": f"{type(error).__name__}: {error}"})
        finally:
            os._exit(status)
    os.close(write_end)
    events = _watch(pid, ready, request, began)
    os.close(ready)
    _, status = os.waitpid(pid, 0)
    return Done(os.waitstatus_to_exitcode(status), time.monotonic() - began, events)


def _write(write_end: int, event: dict) -> None:
    os.write(write_end, json.dumps(event).encode() + b"\n")


def _watch(pid: int, ready: int, request: dict, began: float) -> list[dict]:
    """What the fork reports until it ends; kills it when its time has come."""
    due = began + request["after"] if "after" in request and "step" not in request else None
    events: list[dict] = []
    rest = b""
    while True:
        left = None if due is None else max(0.0, due - time.monotonic())
        if not select.select([ready], [], [], left)[0]:
            os.kill(pid, signal.SIGKILL)
            due = None
            continue
        if not (data := os.read(ready, 1 << 16)):
            return events
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            events.append(json.loads(line))
            if events[-1].get("step") == request.get("step", -1):
                due = time.monotonic() + request["after"]


if __name__ == "__main__":
    serve()
