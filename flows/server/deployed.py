"""The flows that people start from the UI, the command line, a schedule or an event: a full run, one iteration, a
sweep, models measured again, and the dataset alone. deployments/prefect.yaml deploys them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import WithJsonSchema

from flows import sweep as sweeps
from flows.evaluation import Asked
from flows.evaluation_run import name_of_flow, run_evaluation
from flows.execute import NOT_STARTED, NOTHING, redone, rows_only, run_dag, tag, title
from flows.keeping import clear, policy_of
from flows.plan import check, next_iteration
from flows.proxies import keep_loopback_direct
from flows.server.form import Profile, Settings, given
from flows.stages import OPTIONS, failed, store_folder
from flows.streams import keep_lines_whole
from spin_core.analysis.account import account
from spin_core.analysis.format import escape_markdown, ran_text
from spin_core.analysis.sweep import verdict
from spin_core.config.profile import Config, load_profile
from spin_core.errors import BadInput, one_line
from spin_core.report import costs_page
from spin_core.report.stored_run import executions
from spin_core.report.ui_pages import narrow
from spin_core.store.keep import parse as parse_policy
from spin_core.store.opening import open_store
from tasks.runner.pool_run import GPU_POOL
from tasks.runner.redo import parse as parse_redo

AS_IT_IS: dict[str, Any] = {}
Axes = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "additionalProperties": {"type": "array", "items": {}}})
]


def _name() -> str:
    """`demo, 2 iterations, finetune.beta=0.5`, or `demo, iteration next`, from the parameters; what is wrong with them
    the flow itself says."""
    parameters = flow_run.parameters
    settings = parameters.get("settings") or {}
    named = settings.get("name") or (Path(parameters["file"]).stem if parameters.get("file") else "")
    named = str(named or parameters["profile"])
    changed = [f"{path}={value}" for path, value in _flat(given(settings))]
    if "iteration" in parameters:
        t = parameters["iteration"]
        return title(f"{named}, iteration {'next' if t == -1 else t}", None, changed)
    iterations = _iterations(parameters["file"] or parameters["profile"], settings)
    return title(named, iterations, [*redone(parameters), *changed])


def _iterations(profile: str, settings: dict[str, Any]) -> int | None:
    """How many iterations the parameters ask for; None where they are wrong."""
    try:
        return load_profile(profile, changes=given(settings))[0].iterations
    except BadInput:
        return None


def _flat(settings: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its path, as `--set` takes it."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value if isinstance(value, str) else json.dumps(value)


@flow(name="spin", flow_run_name=_name, **OPTIONS)
def spin(
    profile: Profile = "demo",  # type: ignore[valid-type]
    file: str = "",
    settings: Settings = AS_IT_IS,
    redo: list[str] = NOTHING,
    replace: bool = False,
) -> State:
    """Every iteration of a profile, then the report. What the store has is not computed again.

    Args:
        profile: A profile that comes with spinloop. As it is, the demo runs: some minutes on a CPU.
        file: A profile of your own instead: the path of a YAML file that the worker sees.
        settings: What is to be different from the profile. Empty boxes are as the profile has them; "" is no text.
        redo: Steps to compute again though the store has them, such as generate:1 (of iteration 1) or score (of all):
            the outputs are compared, and what stands stays.
        replace: Take what comes out otherwise of the steps of `redo`; later runs go on from it, nothing is lost.
    """
    try:
        config, base_dir = _config(profile, settings, file)
        asked = parse_redo([step.strip() for step in redo if step.strip()], replace)
        asked.demand(config)
        tag(config.name)
        check(config, store_folder(), base_dir, GPU_POOL)
        outcome = run_dag(config, store_folder(), base_dir, GPU_POOL, origin=_origin(), redo=asked)
        _show_costs()
        return _final_state(outcome)
    except Exception as error:
        return failed(error)


@flow(name="iteration", flow_run_name=_name, **OPTIONS)
def iteration(
    profile: Profile = "demo",  # type: ignore[valid-type]
    iteration: int = -1,
    file: str = "",
    settings: Settings = AS_IT_IS,
) -> State:
    """One iteration of a profile. Earlier ones come from the store, and are run only where they are not there. It was
    started for this one, so `runtime.approve` is not waited for.

    Args:
        profile: A profile that comes with spinloop.
        iteration: Which one, from 0; -1 is the first that the store does not have.
        file: A profile of your own instead: the path of a YAML file that the worker sees.
        settings: What is to be different from the profile. Empty boxes are as the profile has them; "" is no text.
    """
    try:
        config, base_dir = _config(profile, settings, file)
        tag(config.name)
        t = next_iteration(config, store_folder(), base_dir) if iteration == -1 else iteration
        if iteration == -1 and t == config.iterations:
            t -= 1  # all are there; the report may not be
        first = config.start.iteration
        if not first <= t < config.iterations:
            raise BadInput(
                f"iteration: {config.name} has the iterations {first} to {config.iterations - 1}; raise `iterations`."
            )
        check(config, store_folder(), base_dir, GPU_POOL)
        follow = "model" if t + 1 < config.iterations else ""
        outcome = run_dag(config.first(t + 1), store_folder(), base_dir, GPU_POOL, origin=_origin(), follow=follow)
        everything = f"All {t + 1} iterations of {config.name} are in the store. "
        return _final_state(outcome, everything if not follow and not outcome["stopped"] else "")
    except Exception as error:
        return failed(error)


@flow(name="dataset", flow_run_name=_name, **OPTIONS)
def dataset(profile: Profile = "demo", file: str = "", settings: Settings = AS_IT_IS) -> State:  # type: ignore[valid-type]
    """A profile's dataset to rows and shards. New rows are an event that can start an iteration.

    Args:
        profile: A profile that comes with spinloop.
        file: A profile of your own instead: the path of a YAML file that the worker sees.
        settings: What is to be different from the profile. Empty boxes are as the profile has them; "" is no text.
    """
    try:
        config, base_dir = _config(profile, settings, file)
        tag(config.name)
        counts = rows_only(config, store_folder(), base_dir, _origin())
        return Completed(message=f"{ran_text(counts['ran'], counts['cached'])}.")
    except Exception as error:
        return failed(error)


@flow(name="variant", flow_run_name="{title}", **OPTIONS)
def variant(config: Config, title: str, base_dir: str) -> dict | State:
    """One run of a sweep."""
    try:
        return run_dag(config, store_folder(), Path(base_dir), GPU_POOL)
    except Exception as error:
        return failed(error)


@flow(name="sweep", flow_run_name=_name, **OPTIONS)
def sweep(
    profile: Profile = "demo",  # type: ignore[valid-type]
    over: Axes = AS_IT_IS,
    seeds: int = 0,
    at_once: int = 1,
    file: str = "",
    settings: Settings = AS_IT_IS,
) -> State:
    """Every variant of a profile, each as a run of its own below this one, and one report of them all. What variants
    have in common is computed once.

    Args:
        profile: A profile that comes with spinloop.
        over: Setting and values, as JSON: {"finetune.beta": [0.05, 0.1]}. Each combination is a variant; with the sweep
            section of the profile where it has one.
        seeds: Trainings of each variant, which differ in finetune.seed; 0 is as the profile has it.
        at_once: Runs side by side. Their stages wait for places on the work pools.
        file: A profile of your own instead: the path of a YAML file that the worker sees.
        settings: What is to be different from the profile, for all variants.
    """
    try:
        keep_lines_whole()
        keep_loopback_direct()
        made = sweeps.trainings(file or profile, (), over, seeds, given(settings))
        if at_once < 1:
            raise BadInput("at_once: give a number from 1 on.")
        for one in made.variants:
            check(one.config, store_folder(), made.base_dir, GPU_POOL)

        def run(one: sweeps.Training) -> dict:
            return cast(dict, variant(one.config, one.title, str(made.base_dir)))

        results = sweeps.run_all(made, run, get_run_logger().info, at_once)
        outcome = sweeps.report(made, store_folder(), results)
        name = re.sub("[^a-z0-9]+", "-", made.all[0].config.name).strip("-")
        create_markdown_artifact(narrow(outcome.text), key=f"{name}-sweep", description=f"Page: {outcome.page}")
        said = f"{verdict(outcome.made)} {ran_text(outcome.ran, outcome.cached)}. Report: {outcome.page}"
        if outcome.failed:
            return Failed(message=f"{len(outcome.failed)} runs failed: {'; '.join(outcome.failed)} {said}")
        return Completed(message=said)
    except Exception as error:
        return failed(error)


@flow(name="gc", flow_run_name="gc", **OPTIONS)
def gc(dry_run: bool = False) -> State:
    """Clears the store by its policy (`spinloop store policy`), on a schedule. Fails while a run uses the store,
    unless the policy says `while_used`.

    Args:
        dry_run: Only say what would go.
    """
    try:
        store = open_store(store_folder(), create=False)
        data = policy_of(store)
        if not data:
            raise BadInput("There is no policy; write one: spinloop store policy older_than=30d max_size=2TB")
        done = clear(store, parse_policy(data, "store.yaml"), dry_run).lines(dry_run)
        lines = [*(f"Note: {note}" for note in store.notes), *done]
        for line in lines:
            get_run_logger().info(line)
        listed = "\n".join(f"- {escape_markdown(line, 1000)}" for line in lines)
        create_markdown_artifact(listed, key="store-gc", description="What the store's policy gave up.")
        return Completed(message=lines[-1])
    except Exception as error:
        return failed(error)


@flow(name="evaluation", flow_run_name=name_of_flow, **OPTIONS)
def evaluation(
    runs: list[str], settings: list[str] = NOTHING, models: list[str] = NOTHING, best: bool = False
) -> State:
    """Models of runs in the store measured again, with another evaluate or harness setting, and one page of them all.
    Nothing is trained.

    Args:
        runs: Names of runs that have a report, or latest.
        settings: Fields of evaluate, harness or runtime, such as harness.tasks=[sciq]; else as each run has it.
        models: Only these models of each run, such as θ_1; empty are all.
        best: Only the best model of each run, by its gate.
    """
    try:
        keep_lines_whole()
        keep_loopback_direct()
        asked = Asked(runs, tuple(settings), tuple(models), best)
        outcome = run_evaluation(asked, store_folder(), Path.cwd(), GPU_POOL)
        for note in outcome["notes"]:
            get_run_logger().warning(note)
        create_markdown_artifact(narrow(outcome["text"]), key="evaluation", description=f"Page: {outcome['page']}")
        counts = f"{ran_text(outcome['ran'], outcome['cached'])}."
        said = f"{outcome['sentence']} {counts} Page: {outcome['page']}"
        if outcome["models"]["failed"]:
            return Failed(message=f"{'; '.join(outcome['lacks'])}. {said}")
        return Completed(message=said)
    except Exception as error:
        return failed(error)


def _config(profile: str, settings: Any, file: str) -> tuple[Config, Path]:
    """The profile with the settings of the form laid over it. What every flow here does first."""
    keep_lines_whole()
    keep_loopback_direct()
    return load_profile(file or profile, changes=given(settings))


def _show_costs() -> None:
    """The page `store-costs`: what all runs of the store computed and what the cache saved. Whatever fails is a
    warning: the run's work is done."""
    try:
        made = account(executions(open_store(store_folder(), create=False, read_only=True)))
        create_markdown_artifact(
            narrow(costs_page.text(made, {})), key="store-costs", description="`spinloop costs` has the disk."
        )
    except Exception as error:
        get_run_logger().warning(f"The page store-costs could not be written ({one_line(error, 300, kind=True)}).")


def _origin() -> dict:
    """The parameters of this run, for the events that start another one like it."""
    return {name: flow_run.parameters.get(name) for name in ("profile", "settings", "file")}


def _final_state(outcome: dict, cached: str = "") -> State:
    """The final state of a run; `cached` comes first where nothing ran."""
    for note in outcome["notes"]:
        get_run_logger().warning(note)
    if outcome["not_started"]:
        return Completed(name=NOT_STARTED, message=outcome["not_started"])
    get_run_logger().info("Report: %s", outcome["report"])
    stopped = f" The gate ended it. {outcome['stopped']}" if outcome["stopped"] else ""
    new = f" {outcome['new']}" if outcome["new"] else ""
    counts = f"{ran_text(outcome['ran'], outcome['cached'])}.{new}{stopped}"
    if not outcome["ran"]:
        return Completed(name="Cached", message=cached + counts)
    return Completed(message=f"{counts} Report: {outcome['report']}")
