"""When a stage's process was at a stage, and when at model arithmetic: one line of JSON a span, in SPINLOOP_SPANS.

Python imports this by itself at its start where the folder is in PYTHONPATH (bench_iteration puts it there). Model
arithmetic: an outermost call of a module, a backward pass, a step of an optimiser.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = os.environ.get("SPINLOOP_SPANS", "")
PREFIX = "spin_core.stages."
_import = importlib.import_module
_depth = 0
_is_hooked = False


def note(kind: str, name: str, began: float) -> None:
    line = json.dumps({"kind": kind, "name": name, "began": began, "ended": time.time()})
    with (Path(FOLDER) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(line + "\n")


def spanned(kind: str, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, with a span for each outermost one: a module's parts, and a backward pass in another, are in its span."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        global _depth
        if kind == "model" and _depth:
            return call(*args, **kwargs)
        _depth += kind == "model"
        began = time.time()
        try:
            return call(*args, **kwargs)
        finally:
            _depth -= kind == "model"
            note(kind, name, began)

    return timed


def hook() -> None:
    global _is_hooked
    torch = sys.modules.get("torch")
    if torch is None or _is_hooked:
        return
    _is_hooked = True
    torch.nn.Module.__call__ = spanned("model", "forward", torch.nn.Module.__call__)
    torch.Tensor.backward = spanned("model", "backward", torch.Tensor.backward)
    torch.autograd.backward = spanned("model", "backward", torch.autograd.backward)
    # Before a subclass is made: torch wraps each class's own step when its first object is.
    torch.optim.Optimizer.profile_hook_step = staticmethod(_stepped(torch.optim.Optimizer.profile_hook_step))


def _stepped(wrap: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda step: spanned("model", "optimiser", wrap(step))


def import_module(name: str, package: str | None = None) -> Any:
    module = _import(name, package)
    if name.startswith(PREFIX) and not hasattr(module, "_spanned"):
        import torch  # noqa: F401

        hook()
        module._spanned, module.run = True, spanned("stage", name.removeprefix(PREFIX), module.run)  # type: ignore[attr-defined]
    return module


if FOLDER and "spin_core.runtime.worker" in sys.orig_argv:
    importlib.import_module = import_module
