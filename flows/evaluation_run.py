"""Runs the steps of `spinloop evaluate` in a Prefect flow, and writes the page that sets its models side by side."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows import live
from flows.ending import heeding_sigterm, outcome_known
from flows.evaluation import Asked, Inputs, Model, chosen, looked_up, name_of
from flows.execute import title
from flows.plan import check_machine
from flows.stages import OPTIONS, failed
from spin_core.analysis import account
from spin_core.analysis import evaluation as analysis
from spin_core.analysis.costs import costs
from spin_core.analysis.evaluation import Evaluated, Measured
from spin_core.analysis.results import read_model
from spin_core.errors import BadInput, SpinloopError, Stopped, StoreError
from spin_core.job import Entry
from spin_core.report import evaluation_page
from spin_core.report.run import facts_of
from spin_core.runtime import gpus
from spin_core.runtime.child import Children
from spin_core.runtime.leader import leading
from spin_core.store import runs as store_runs
from spin_core.store.opening import open_store
from spin_core.store.store import Store
from tasks.runner.pools import Pools
from tasks.runner.progress import Progress
from tasks.runner.run import Run


@dataclass(frozen=True)
class Done:
    """What became of a model: its entries in the ledger of this evaluation, and the error of a step that failed."""

    model: Model
    ledger: list[Entry]
    error: SpinloopError | None

    def digest(self, stage: str) -> str:
        """Of its step's output; empty where there is none."""
        return next((entry.digest for entry in self.ledger if entry.stage == stage), "")

    @property
    def state(self) -> analysis.State:
        """Of all its steps together."""
        if self.error:
            return "failed"
        if any(part.lacks for part in self.model.parts):
            return "left out"
        return "measured" if any(entry.state == "ran" for entry in self.ledger) else "cached"


def name_of_flow() -> str:
    """`evaluation of demo-3fa9c1 and 2 more, evaluate.sampled=false`, of the parameters."""
    runs, settings = flow_run.parameters["runs"] or ["no run"], flow_run.parameters.get("settings") or ()
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    return title(f"evaluation of {runs[0]}{more}", None, settings)


@flow(name="evaluation", flow_run_name=name_of_flow, **OPTIONS)
def evaluation(
    runs: list[str], store: str, settings: tuple[str, ...] = (), models: tuple[str, ...] = (), best: bool = False,
    sources: tuple[str, ...] = (), base_dir: str = ".",
) -> dict | State:  # fmt: skip
    """Measure models of runs of the store again, and set them side by side; what the store has is not computed
    again."""
    try:
        outcome = run_evaluation(Asked(runs, settings, models, best, sources), store, Path(base_dir), "here")
        outcome_known(outcome)
        return outcome
    except Exception as error:
        outcome_known(error)
        return failed(error)


def run_evaluation(asked: Asked, store: str, base_dir: Path, pool: str) -> dict:
    """Inside a flow: `pool` is that of the stages that `runtime.pools` does not name."""
    opened = open_store(store, create=False)
    with opened.using():
        named, inputs = chosen(opened, asked, base_dir)
        models = looked_up(opened, named, inputs, base_dir)
        _check(models, pool)
        done = _measured(opened, models, inputs, base_dir, pool)
        name = name_of(models)
        _keep(opened, done, name)
        return _report(opened, name, asked, done)


def _check(models: Sequence[Model], pool: str) -> None:
    """Raise BadInput where this machine lacks what a step needs that would run here, and where no step of any model
    can."""
    for model in models:
        stages = [part.entry.stage for part in model.parts if part.entry.state != "cached" and not part.lacks]
        check_machine(model.run.config, stages, pool)
    if all(part.lacks for model in models for part in model.parts):
        first = models[0]
        raise BadInput(f"{first.title}: {first.parts[0].lacks}; no model of these runs can be measured.")


def _measured(store: Store, models: Sequence[Model], inputs: Inputs, base_dir: Path, pool: str) -> list[Done]:
    """Every step that can be is looked up or computed. Each model has a `Run` of its own: one that fails keeps no other
    from being measured. Raises Stopped where SIGTERM ended it."""
    runtime = models[0].run.config.runtime  # of all: no run's report has one, so it is what was set
    here = any(runtime.pools.of(stage, pool) == "here" for stage in ("evaluate", "harness"))
    several = len({model.run.facts.name for model in models}) > 1
    with ExitStack() as within:
        leader = within.enter_context(leading(store.root, runtime) if here else nullcontext())
        seen = gpus.groups(runtime, gpus.visible()) if here else []
        children = within.enter_context(Children(runtime.workers, seen, leader))
        pools = within.enter_context(Pools(store, runtime, pool))
        within.enter_context(heeding_sigterm(children) if pool == "here" else nullcontext())
        runs = [model.run.steps(store, children, base_dir, pools=pools) for model in models]
        progress = Progress(live.view(lambda: [title for run in runs for title in run.ahead()]))
        within.callback(progress.close)
        progress.meters.profile = "evaluation"
        store.report = progress
        for model, run in zip(models, runs, strict=True):
            run.progress = progress
            for part in model.parts:
                if not part.lacks:
                    model.submit(run, part.entry.stage, inputs, model.title if several else model.step.label)
        for run in runs:
            for future in run.futures:
                future.wait()
        done = [_done(model, run) for model, run in zip(models, runs, strict=True)]
    _count_once([entry for one in done for entry in one.ledger])
    if stopped := next((one.error for one in done if isinstance(one.error, Stopped)), None):
        raise stopped
    errors = [one.error for one in done if one.error]
    if len(errors) == len(done):
        raise errors[0]
    return done


def _count_once(entries: Sequence[Entry]) -> None:
    """A step of two runs that a work pool computed for both was cached for the second. Where one of them waited for the
    other to compute it, whichever that was, it is cached for that one already."""
    ran = set[str]()
    for entry in entries:
        if entry.state == "ran":
            entry.state = "Cached" if entry.key in ran else "ran"
            ran.add(entry.key)


def _done(model: Model, run: Run) -> Done:
    error = run.failures[0] if run.failures else None
    if error is None and len(run.ledger) < len(run.futures):
        error = run.unexpected(RuntimeError("a task of Prefect ended without its step"))
    return Done(model, run.ledger, error)


def _keep(store: Store, done: Sequence[Done], name: str) -> None:
    """Links in the runs' own folders, so that gc keeps what was measured as long as the run; and what it cost, for
    `spinloop costs`."""
    for run in {one.model.run.facts.name: one.model.run for one in done}.values():
        own = [one for one in done if one.model.run is run]
        there = {*store_runs.pointer(store.root / "runs" / run.facts.name)[0].values()}
        links: dict[str, str | None] = {}
        for one in own:
            words = re.findall("[A-Za-z0-9]+", one.model.step.label.replace("θ", "theta"))
            for entry in one.ledger:
                if entry.digest not in there:
                    links["-".join([name.rpartition("-")[2], entry.stage, *words])] = entry.digest
        if links:
            store.link_run(run.facts.name, links, latest=False)
        ledger = [entry for one in own for entry in one.ledger]
        made = costs(ledger, lambda step: facts_of(store.record(step.stage, step.key) if step.key else None))
        file = account.name_of(datetime.now(UTC), uuid.uuid4().hex[:6])
        store.write_run_file(run.facts.name, file, account.file_of(run.config.name, made, evaluation=True))


def _report(store: Store, name: str, asked: Asked, done: Sequence[Done]) -> dict:
    """Write the page, and the same as Markdown and JSON, beside the runs; what a command says of it."""
    measured = [_read(store, one) for one in done]
    last = {one.run: max((other.made for other in measured if other.run == one.run and other.made), default=None)
            for one in measured}  # fmt: skip
    never = datetime.min.replace(tzinfo=UTC)
    measured.sort(key=lambda one: (last[one.run] or never, one.run))  # stable: a run's models stay in their order
    profiles = {one.model.run.facts.name: one.model.run.config.model_dump(mode="json") for one in done}
    made = analysis.evaluated(measured, {run: profiles[run] for run in last if run in profiles})
    settings = [one for one in asked.settings if not one.startswith("runtime")]
    text, page = evaluation_page.text(made, settings), store.root / "runs" / f"{name}.html"
    entries = [entry for one in done for entry in one.ledger]
    ran = sum(entry.state == "ran" for entry in entries)
    facts = {"evaluation": name, "settings": settings, "ran": ran, "cached": len(entries) - ran}
    data = json.dumps(analysis.as_json(made, facts), indent=1, ensure_ascii=False) + "\n"
    try:
        page.write_text(evaluation_page.page(made, name, settings), encoding="utf-8")
        page.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
        page.with_suffix(".json").write_text(data, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{page}: cannot be written ({error.strerror}).") from None
    said = analysis.sentence(made)
    return {**facts, "sentence": said, "page": str(page), "text": text, "notes": store.notes, **_counts(made)}


def _counts(made: Evaluated) -> dict:
    said = [f"{one.run}, {one.results.label}: {why}" for one in made.models for why in one.lacks]
    left_out = made.count("left out")
    counts = {"cached": made.count("cached"), "measured": made.count("measured"), "left_out": left_out}
    return {"models": counts | {"failed": made.count("failed")}, "lacks": said}


def _read(store: Store, one: Done) -> Measured:
    """A model with what its steps have of it now."""
    model, place = one.model, one.model.step.place
    trees = {stage: store.tree(digest) for stage in ("evaluate", "harness") if (digest := one.digest(stage))}
    iteration = -1 if place.model is None else place.model - 1
    kind = place.role or "iteration"
    results = read_model(model.step.label, kind, iteration, trees.get("evaluate"), harness=trees.get("harness"))
    facts = model.run.facts
    is_best = place.role != "control" and bool(facts.models) and place.model == facts.best()
    lacks = [f"{part.entry.stage} left out: {part.lacks}" for part in model.parts if part.lacks]
    lacks += [f"failed: {one.error}"] if one.error else []
    return Measured(facts.name, results, _made(store, model), is_best, one.state, lacks)


def _made(store: Store, model: Model) -> datetime | None:
    """When the model was published here; None for one that the run was given."""
    steps = model.run.facts.steps
    step = next((one for one in steps if one.digest == model.digests.get("model") and one.key), None)
    return store.published(step.stage, step.key) if step else None
