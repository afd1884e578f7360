"""The flows that work pools run: one stage each. They use the same store as everybody, so a stage that is started by
hand shares the cache with the iterations.

An iteration starts them (tasks/runner/pool_run.py). Started by hand, an input is a digest of the store, a folder or a
hub id:

    prefect deployment run evaluate/spin-gpu --param 'work=[{"inputs": {"model": "org/name", "rows": "<digest>"}}]'
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel, Field

from flows.proxies import keep_loopback_direct
from flows.streams import keep_lines_whole
from spin_core.analysis.format import ran_text
from spin_core.config.base import Section
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput, ChildDied, SpinloopError
from spin_core.job import Place
from spin_core.runtime import gpus
from spin_core.runtime.child import Children
from spin_core.runtime.leader import leading
from spin_core.runtime.step import KeyedStep, Step
from spin_core.sources import resolve
from spin_core.sources.resolve import Ref, SourceKind
from spin_core.stages import evaluate as evaluate_stage
from spin_core.stages import finetune as finetune_stage
from spin_core.stages import generate as generate_stage
from spin_core.stages import harness as harness_stage
from spin_core.stages import score as score_stage
from spin_core.stages import sft as sft_stage
from spin_core.store.keys import DIGEST
from spin_core.store.opening import named, open_store
from tasks.runner.redo import Redo, message
from tasks.runner.stage import task_of
from tasks.runner.steps import Steps


class Work(BaseModel):
    """One step of a stage."""

    label: str = Field("", description="What people read beside the stage's name, e.g. `iter 0, shard 1/8`.")
    place: dict[str, Any] = Field({}, description="Where it stands in a run (spin_core.job.Place); empty by hand.")
    inputs: dict[str, Any] = Field(
        description="Name → a digest of the store, a folder or a hub id (a list of them where the stage reads many)."
    )
    key: str = Field("", description="The key that it must have; a worker with other code refuses. Empty: any.")
    take: int = Field(0, description="Beside a key: how often the step was replaced (`--redo … --replace`).")
    redo: Literal["", "compare", "replace"] = Field(
        "",
        description="Compute it again though its output is there: compare (what stands stays), replace (runs go on "
        "from the new output). The same for all steps of one flow run.",
    )


RUNTIME = Runtime()
OPTIONS: dict[str, Any] = {
    # What is not said here, the settings say of whoever starts the flow, and they are for other flows. A failure is bad
    # input, or was tried again where that helps (tasks/runner/stage.py).
    "retries": 0,
    "retry_delay_seconds": 0,
    "persist_result": False,
    "result_storage": Path(os.devnull),  # nothing is written there; a default one is looked up before the flow begins
    # Two jobs in each of 16 vLLM engines, and some that wait for other steps or for a work pool.
    "task_runner": ThreadPoolTaskRunner(max_workers=40),
}
"""Of every flow."""


def _flow(module: ModuleType, description: str) -> Any:
    """The flow of one stage. Prefect makes its run form of the signature, so `config` is annotated with the stage's."""

    def serve(config: Section, work: list[Work], runtime: Runtime = RUNTIME, store: str = "") -> State:
        return _serve(module, config, work, runtime, store)

    serve.__annotations__["config"] = module.Config
    serve.__name__ = serve.__qualname__ = module.NAME
    return flow(description=description, **OPTIONS)(serve)


sft = _flow(sft_stage, "A base model to θ_0 (inputs: model, tokens).")
generate = _flow(generate_stage, "Shards of prompts to the opponent's answers (inputs: model, prompts).")
score = _flow(
    score_stage,
    "The reference log-probs of a pair set under one model (inputs: model, pairs; to read real answers' log-probs from "
    "another set's score also real_pairs, real_logps).",
)
finetune = _flow(finetune_stage, "θ_t to θ_{t+1} (inputs: model, pairs, logps; of loss tspin also first).")
evaluate = _flow(
    evaluate_stage,
    "A model's metrics on held-out rows (inputs: model, rows, tokens; of an iteration's also pairs, logps, start).",
)
harness = _flow(
    harness_stage,
    "A model on benchmark tasks (inputs: model; where there are task files of one's own also tasks, their folder).",
)


def store_folder() -> str:
    """The store of this worker, a folder or URL: $SPINLOOP_STORE, which `spinloop deploy` puts into the pools' job
    template. Raises BadInput where it is not set: a flow run's own folder is thrown away with all that is in it."""
    store = os.environ.get("SPINLOOP_STORE")
    if not store:
        raise BadInput(
            "SPINLOOP_STORE is not set on this worker; `spinloop deploy` puts it into the pool, or export it."
        )
    return named(store)


def failed(error: Exception) -> State:
    """The final state of a flow run that a person (or the run that waits for it) reads `error` in. Every flow returns
    this for whatever went wrong in it: what it raised, Prefect would keep as a pickle in its result storage."""
    get_run_logger().error(str(error), exc_info=None if isinstance(error, SpinloopError) else error)
    return Failed(message=f"{type(error).__name__}: {error}")


def _serve(module: ModuleType, config: Section, work: list[Work], runtime: Runtime, store: str) -> State:
    """Look up or compute every step of `work`; `store` is the identity that the store must have."""
    keep_lines_whole()
    keep_loopback_direct()
    try:
        artifacts = open_store(store_folder(), runs=False)
        if store and artifacts.identity() != store:
            raise BadInput(
                f"{store_folder()}: this worker's store is another than that of the run that asks; show both the same "
                "($SPINLOOP_STORE)."
            )
        with (
            artifacts.using(),
            leading(artifacts.root, runtime) as leader,
            Children(runtime.workers, gpus.groups(runtime, gpus.visible()), leader) as children,
        ):
            steps = Steps(artifacts, children, runtime)
            steps.redo = _redo(module, work)
            for one in work:
                step = Step(module, one.label, config, _place(one.place))
                inputs = {name: _ref(name, value) for name, value in one.inputs.items()}
                if one.key and (one.take or steps.takes):  # as the run that asks read it, not as it is by now
                    steps.takes[KeyedStep(step, inputs).first_key] = one.take
                if one.key and steps.keyed(step, inputs).key != one.key:
                    raise BadInput(
                        f"{step.title}: this worker's spinloop gives the step another key than the run that asks; "
                        "install the same version on both."
                    )
                steps.submit(task_of(module), step, inputs)
            steps.settle()
    except Exception as error:
        return failed(error)
    if steps.failures:
        # A process that died says more than the steps that were then not begun.
        return failed(next((e for e in steps.failures if not isinstance(e, ChildDied)), steps.failures[0]))
    if steps.redo.wanted:
        for line in steps.redo.report():
            get_run_logger().info(line)
        return Completed(message=message(steps.redo))
    counts = steps.counts()
    return Completed(message=f"{ran_text(counts['ran'], counts['cached'])}.")


def _redo(module: ModuleType, work: list[Work]) -> Redo:
    """All steps of a flow run, where they are to be computed again."""
    asked = {one.redo for one in work}
    if len(asked) > 1:
        raise BadInput("work: `redo` is not the same for all steps of this flow run; start one for each.")
    return Redo([(module.NAME, None)], "replace" in asked) if asked - {""} else Redo()


def _ref(name: str, value: Any) -> Any:
    """What an input names: a Ref as another flow run wrote it, or what a person can write."""
    if isinstance(value, list):
        return [_ref(name, one) for one in value]
    if isinstance(value, dict) and value.keys() <= Ref.__dataclass_fields__.keys() and "digest" in value:
        ref = Ref(**value)
        if ref.path:
            _seen_here(name, ref)
        return ref
    if not isinstance(value, str):
        raise BadInput(f"{name}: {value!r} is no input; give a digest of the store, a folder or a hub id.")
    if DIGEST.fullmatch(value):
        return Ref(digest=value)
    kind: SourceKind = "model" if name in ("model", "start") else "tasks" if name == "tasks" else "dataset"
    return resolve.resolve(value, kind, "", Path.cwd())


def _seen_here(name: str, ref: Ref) -> None:
    """Raise BadInput unless this worker has the same model or dataset at the same place."""
    place = Path(ref.path)
    if not place.exists():
        raise BadInput(f"{name}: this worker sees no {place}; put it where every worker sees it.")
    if (
        resolve.stamp(place) != ref.stamp
        and resolve.resolve(str(place), ref.kind, "", place, ref.split, config=ref.config).digest != ref.digest
    ):
        raise BadInput(f"{name}: {place} is another on this worker; put one copy where every worker sees it.")


def _place(fields: dict[str, Any]) -> Place:
    try:
        return Place.from_json(fields)
    except TypeError:
        raise BadInput(f"place: {fields!r} has fields that this spinloop does not know; leave it out.") from None
