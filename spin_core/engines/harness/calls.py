"""lm_eval's own functions, called: its index of tasks, one task list entry, a model of it per back end.

Needs lm_eval (the extra `eval`), for vLLM under vLLM's interpreter. No network but for a hub task's data;
no subprocess, no code off the hub.
"""

from __future__ import annotations

import difflib
import errno
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin_core.config.runtime import Runtime
from spin_core.engines.harness.backends import BACKENDS
from spin_core.errors import BadInput, ChildDied, SpinloopError, StageFailed, one_line
from spin_core.runtime import vllm_env
from spin_core.sources import hub, task_folder

if TYPE_CHECKING:
    from spin_core.config.harness import Harness, HarnessTask

BOOTSTRAP = 1000  # resamples for the error of what is no mean: lm_eval's 100,000 in one process is minutes of a metric


def check_here(part: Harness, runtime: Runtime) -> None:
    """Raise BadInput unless this machine can run the section: the back end's interpreter has lm_eval, and each of its
    processes a GPU."""
    engine = BACKENDS[part.backend].engine
    python = engine.interpreter(runtime)
    check_version(part, vllm_env.lm_eval(python) if python else installed())
    engine.check(runtime)


def installed() -> str:
    """The release of lm_eval that this interpreter has, or empty."""
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        return ""


def check_version(part: Harness, release: str) -> None:
    """Raise BadInput unless `release` (empty: none) is that of lm_eval that the section requests."""
    wanted = part.lm_eval
    if release != wanted:
        state = f"lm_eval {release} is installed" if release else "lm_eval is not installed"
        fix = f"`pip install lm_eval=={wanted}`" if part.backend == "hf" else "run `make vllm-env` again"
        other = f", or set harness.lm_eval: {release}, which is another result" if release else ""
        raise BadInput(f"harness.lm_eval: {wanted} is requested and {state}; {fix}{other}.")


class Calls:
    """The chosen tasks, all loaded before anything is computed; and lm_eval's evaluation of one.

    `local`: a folder of task files, whose names win over lm_eval's own. `scratch` takes the tables that `datasets`
    makes of its data. From the first of these objects on, this process renders lm_eval's templates in jinja's sandbox.
    Raises BadInput naming the task that is not there, is chosen twice, or lacks its data or metric.
    """

    def __init__(self, part: Harness, local: Path | None, scratch: Path):
        os.environ["HF_EVALUATE_OFFLINE"] = "1"  # `evaluate` would fetch metrics, which are code
        os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap would fork this process, which may hold a GPU
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        from jinja2 import BaseLoader, StrictUndefined
        from jinja2.sandbox import SandboxedEnvironment
        from lm_eval import utils
        from lm_eval.tasks import TaskManager

        sandbox = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
        sandbox.filters.update(utils.env.filters)
        utils.env = sandbox  # a template in a task file could otherwise reach all of Python
        self.part = part
        self.manager = TaskManager(include_path=str(local) if local else None, include_defaults=False)
        index = self.manager.task_index
        own = _resolve(index, local, scratch) if local else {}
        names = {one.task for one in part.tasks}
        if not names <= own.keys() or any(one.kind.name == "GROUP" for one in own.values()):
            index.update(_shipped() | own)
        for name in sorted(names - index.keys()):
            near = difflib.get_close_matches(name, index, n=1)
            hint = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists them."
            raise BadInput(f"harness.tasks: there is no task {name} in lm_eval {part.lm_eval}; {hint}")
        self.loaded = {}
        seen: set[str] = set()
        for entry in part.tasks:
            self.loaded[entry.task] = loaded, _ = self._load(entry)
            if both := seen & loaded["tasks"].keys():
                raise BadInput(f"harness.tasks: {min(both)} is in the list twice, once in {entry.task}; leave one out.")
            seen |= loaded["tasks"].keys()

    def _load(self, entry: HarnessTask) -> tuple[dict[str, Any], tuple]:
        """The tasks of an entry as `simple_evaluate` sets them up, its seeds first; and where the generators then
        are."""
        import numpy as np
        import torch

        seeds = self.part.seeds
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.manual_seed(seeds[2])
        with _errors(entry.task):
            loaded: dict[str, Any] = self.manager.load([entry.task])
            for name, task in loaded["tasks"].items():
                _check_metric(name, task, entry.metric)
                own = task.get_config("num_fewshot")
                if entry.num_fewshot is not None and own != 0:  # a task that says 0 keeps it, as in lm_eval
                    task.set_config(key="num_fewshot", value=entry.num_fewshot)
                elif own is None:
                    task.set_config(key="num_fewshot", value=0)
                task.set_fewshot_seed(seed=seeds[3])
        return loaded, (random.getstate(), np.random.get_state(), torch.get_rng_state())

    def run(self, lm: Any, entry: HarnessTask) -> dict[str, Any]:
        """lm_eval's results of one entry as `simple_evaluate` gives them, and under `loaded` its tasks and groups.
        Raises BadInput naming the task where lm_eval cannot run it, StageFailed where memory ran out."""
        import numpy as np
        import torch
        from lm_eval import evaluator

        loaded, states = self.loaded.pop(entry.task)
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        lm.cache_hook.label = entry.task
        with _errors(entry.task):
            results: dict[str, Any] = evaluator.evaluate(
                lm,
                loaded,
                limit=entry.limit,
                bootstrap_iters=BOOTSTRAP,
                apply_chat_template=self.part.chat_template,
                fewshot_as_multiturn=True,  # simple_evaluate's default; matters with a chat template only
            )
        return {**results, "loaded": loaded}


def _check_metric(name: str, task: Any, wanted: str) -> None:
    """Raise BadInput where the task's file already shows that it has no such metric: a benchmark can take hours."""
    measure, _, filter_name = wanted.partition(",")
    own_code = callable(task.get_config("process_results"))  # which may give more metrics than are listed
    filters = [one.name for one in getattr(task, "_filters", [])]
    if (measure and not own_code and measure not in task.aggregation()) or (filter_name and filter_name not in filters):
        known = "; ".join(f"{metric},{one}" for one in filters for metric in task.aggregation())
        raise BadInput(f"harness.tasks: {name} has no metric {wanted}; it has {known}.")


@contextmanager
def _errors(task: str) -> Iterator[None]:
    """What lm_eval, datasets, jinja2, the hub and the tasks raise, of no common family, as one sentence."""
    try:
        yield
    except (SpinloopError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _rejected(task, error) from error


@cache
def _shipped() -> dict[str, Any]:
    """lm_eval's own index. 10 s for 14,000 names, so only where one of them may be meant, and once in a process."""
    from lm_eval.tasks import TaskManager

    return dict(TaskManager().task_index)


def _resolve(index: dict[str, Any], local: Path, scratch: Path) -> dict[str, Any]:
    """The local entries with data files by absolute path. Raises BadInput for a metric that lm_eval does not have."""
    import lm_eval.api.metrics  # noqa: F401 (fills the registry)
    from lm_eval.api.registry import metric_registry

    for entry in index.values():
        if entry.yaml_path is None:  # a tag
            continue
        content = task_folder.read(Path(entry.yaml_path), local)
        for place in task_folder.mappings(content):
            for one in place.get("metric_list") or []:
                if one.get("metric") not in metric_registry:  # lm_eval would look for code of that name
                    raise BadInput(
                        f"{entry.yaml_path}: lm_eval has no metric {one.get('metric')}; use one that it has, as "
                        "exact_match."
                    )
            if (place.get("dataset_kwargs") or {}).get("data_files"):
                place["dataset_kwargs"]["cache_dir"] = str(scratch / "datasets")
        entry.cfg, entry.yaml_path = content, None
    return dict(index)


def _rejected(task: str, error: Exception) -> SpinloopError:
    """What lm_eval raised, as one sentence with the remedy."""
    if type(error).__name__ == "OutOfMemoryError":
        return StageFailed(
            f"harness: the task {task} ran out of GPU memory; lower runtime.harness_batch or set harness.max_length."
        )
    text = one_line(hub.masked(one_line(error, 100_000, kind=True)), 240)  # a hub's error has addresses
    if "EngineDead" in text:
        return ChildDied(f"harness: vLLM's engine died in the task {task} ({text})")
    if "offline" in text.lower() or "reach" in text or isinstance(error, ConnectionError):
        return BadInput(
            f"harness: the data of task {task} is not on this machine and the hub cannot be reached ({text}); go "
            "online once, or use local task files (harness.include_path)."
        )
    if type(error).__name__ == "SecurityError":
        return BadInput(f"harness: a template of the task {task} reaches for Python ({text}); correct its file.")
    if "marked as unsafe" in text:
        return BadInput(
            f"harness: the task {task} runs code that the model writes, which is not done here; leave it out."
        )
    return BadInput(f"harness: lm_eval cannot run the task {task} ({text}); check its files and settings.")
