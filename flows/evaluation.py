"""`spinloop evaluate`: which models of which runs of the store are measured again, with which steps, and what of these
is there already. Trains nothing and generates no pairs.

The steps are those that the run itself would have with these settings: its own profile as its report keeps it, its own
models and held-out rows by digest, described by the same tasks, so with the same keys. Is not: the flow that runs them
(`flows/evaluation_run.py`).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spin_core.config.generate import Decoding
from spin_core.config.profile import Config, changed, parse
from spin_core.errors import BadInput
from spin_core.job import Entry
from spin_core.report.run_facts import RunFacts, read_run
from spin_core.report.stored_run import find, reports_of
from spin_core.runtime.child import Children
from spin_core.sources import resolve
from spin_core.sources.deployment import FILE, decoding_of
from spin_core.sources.resolve import Ref
from spin_core.store import keys
from spin_core.store.keys import DIGEST
from spin_core.store.store import Store
from tasks.evaluate import evaluate
from tasks.harness import harness
from tasks.runner.planning import Planner
from tasks.runner.pools import Pools
from tasks.runner.run import Run

SETTABLE = ("evaluate", "harness", "runtime")
LOCAL = "(local)"  # what a report has in place of a path of the machine that made it (tasks/report.py)
READ = {
    "model": "its model", "start": "θ_0, which its margins are measured against,", "rows": "its held-out rows",
    "tokens": "the tokens of its held-out rows", "pairs": "the pairs of its iteration",
    "logps": "its opponent's log-probs", "tasks": "the folder of its benchmark tasks",
}  # fmt: skip
"""What a step reads, in a sentence."""


@dataclass(frozen=True)
class Asked:
    """What a person asked for. `settings`: as `--set` takes them; `models`: labels, all where empty; `best`: only the
    best model of each run; `sources`: models that runs were given, by path or hub id."""

    runs: list[str]
    settings: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    best: bool = False
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A step of one model: `entry` says whether it is cached or would run, and why; `lacks`: why it cannot be run."""

    entry: Entry
    lacks: str = ""


@dataclass(frozen=True)
class Model:
    """A model that a run measured: its run, the run's step, what that read by digest, and its steps now."""

    run: ChosenRun
    step: Entry
    digests: dict[str, str]
    parts: list[Part] = field(default_factory=list)

    @property
    def title(self) -> str:
        """`demo-3fa9c1, θ_1`"""
        return f"{self.run.facts.name}, {self.step.label}"

    def submit(self, run: Run, stage: str, inputs: Inputs, label: str) -> Any:
        """Submit its step of a stage, or in a plan look it up, as flows/spin.py does."""
        place, reads = self.step.place, {name: inputs.ref(digest) for name, digest in self.digests.items()}
        if stage == "harness":
            return harness(run, label, place, reads["model"])
        # The settings of its iteration; what measures θ_0 or a control has those of the first.
        t = place.iteration if place.role == "iteration" and place.iteration is not None else 0
        return evaluate(run, label, place, t=t, **reads)


@dataclass(frozen=True)
class ChosenRun:
    """A run of the store: `config`: its own with what was set; `tasks`: the digest of its folder of tasks, where that
    is still its own; `deployed`: how its base model is deployed."""

    facts: RunFacts
    config: Config
    tasks: str = ""
    deployed: Decoding | None = None

    def steps(self, store: Store, children: Children, base_dir: Path, planner: Planner | None = None,
              pools: Pools | None = None) -> Run:  # fmt: skip
        """What looks up or runs steps of one of its models."""
        run = Run(self.config, store, children, base_dir, planner, pools)
        run.deployed = self.deployed
        if self.tasks:
            run.sources.append(("tasks", Ref(self.tasks, kind="tasks"), ""))
        return run


class Inputs:
    """What steps read, by digest: verified outputs of the store, and models that runs were given. Each is looked for
    once."""

    def __init__(self, store: Store, given: Sequence[Ref]):
        self.store, self.given = store, {ref.digest: ref for ref in given}
        self._known: dict[str, Ref | None] = {}

    def find(self, run: RunFacts, digest: str) -> Ref | None:
        """None where it is no longer there."""
        if digest not in self._known:
            self._known[digest] = self._find(run, digest)
        return self._known[digest]

    def ref(self, digest: str) -> Ref:
        """What `find` gave for the digest; of one that nobody looked for, as if the store had it."""
        return self._known.get(digest) or Ref(digest)

    def _find(self, run: RunFacts, digest: str) -> Ref | None:
        for step in run.steps:
            if step.digest == digest and step.key:
                record = self.store.lookup(step.stage, step.key)
                return Ref(digest) if record and record.digest == digest else None
        if digest in self.given:
            return self.given[digest]
        for one in run.sources:
            if one["digest"] == digest and one["hub"] and one["kind"] == "model":
                return self._from_hub(one)
        try:
            return Ref(resolve.artifact(self.store, digest, "model").digest)
        except BadInput:
            return None

    def _from_hub(self, source: dict[str, Any]) -> Ref | None:
        """A model at the commit that a run had; None, and a note, where it cannot be had."""
        try:
            ref = resolve.resolve(source["hub"], "model", source["commit"], Path("/nonexistent"))
        except BadInput as error:
            self.store.note_once(str(error))
            return None
        return ref if ref.digest == source["digest"] else None


def chosen(store: Store, asked: Asked, base_dir: Path) -> tuple[list[Model], Inputs]:
    """The models that are asked for, of one run after the other, their steps not looked up. Raises BadInput for runs,
    models, settings and sources that cannot be used."""
    for setting in asked.settings:
        name = setting.partition("=")[0].partition(".")[0].strip()
        if name not in SETTABLE:
            raise BadInput(
                f"--set {setting}: only evaluate, harness and runtime can be set here, as the models stay what they "
                "are; `spinloop run` makes others."
            )
    if asked.best and asked.models:
        raise BadInput("--best and --models: give one of the two.")
    names = [find(store, name).name for name in asked.runs]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise BadInput(f"{twice} is named twice; leave one out.")
    given = [resolve.find(store, place, "model", base_dir=base_dir) for place in asked.sources]
    inputs, models = Inputs(store, given), list[Model]()
    for name in names:
        run, steps = _run(store, name, asked, inputs)
        models += [Model(run, step, _inputs(store, step)) for step in steps]
    _demand_used(given, models)
    return models, inputs


def looked_up(store: Store, models: Sequence[Model], inputs: Inputs, base_dir: Path) -> list[Model]:
    """The models with their steps; what a step that would run reads is verified."""
    return [replace(model, parts=[*_parts(store, model, base_dir, inputs)]) for model in models]


def _run(store: Store, name: str, asked: Asked, inputs: Inputs) -> tuple[ChosenRun, list[Entry]]:
    """A run, and those of its steps that measured the models that are asked for."""
    facts = read_run(store, name)
    profile = reports_of(store, store.root / "runs" / name, facts.steps)[-1].payload["config"]["profile"]
    config = parse(changed(copy.deepcopy(profile), asked.settings), name)
    if config.runtime.trackers or config.runtime.approve:
        raise BadInput("runtime.trackers, runtime.approve: these are for runs that train; leave them out.")
    steps = _of_models(facts, asked)
    own = config.harness.include_path == LOCAL if config.harness else False
    recorded = (_inputs(store, step) for step in facts.steps if step.stage == "harness" and step.key)
    tasks = next((digests["tasks"] for digests in recorded if "tasks" in digests), "") if own else ""
    run = ChosenRun(facts, config, tasks)
    return ChosenRun(facts, config, tasks, _deployed(store, run, inputs)), steps


def _of_models(facts: RunFacts, asked: Asked) -> list[Entry]:
    steps = [step for step in facts.steps if step.stage == "evaluate" and step.key]
    if not steps:
        raise BadInput(f"{facts.name}: this run measured no model; run its profile again.")
    by_label = {step.label: step for step in steps}
    wanted = [f"θ_{facts.best()}"] if asked.best else [_label(name) for name in asked.models] or list(by_label)
    for label in wanted:
        if label not in by_label:
            raise BadInput(f"{facts.name}: there is no model {label}; it measured {', '.join(by_label)}.")
    return [by_label[label] for label in dict.fromkeys(wanted)]


def _label(name: str) -> str:
    """`θ_2` of `θ_2`, `theta_2` or `2`; another name is a control's label."""
    number = re.fullmatch(r"(?:θ_|theta_)?(\d{1,3})", name.strip())
    return f"θ_{int(number[1])}" if number else name.strip()


def _inputs(store: Store, step: Entry) -> dict[str, str]:
    """What a step of a run read, by digest; nothing where its record is gone."""
    record = store.record(step.stage, step.key)
    return {name: str(digest) for name, digest in record.payload["inputs"].items()} if record else {}


def _deployed(store: Store, run: ChosenRun, inputs: Inputs) -> Decoding | None:
    """How the run's base model is deployed, as the run itself would read it (`Run.deployment`). Every model that was
    trained from it has its generation_config.json, byte for byte."""
    steps = [step for step in run.facts.steps if step.stage == "evaluate" and step.key]
    for step in steps:
        record = store.record(step.stage, step.key)
        if record and (said := record.payload["config"].get("deployed")):
            return Decoding.model_validate(said)
    base = run.config.model.path
    planned = Run(run.config, store, Children(0), Path(), Planner())
    if base == "builtin:tiny-llama" or (DIGEST.fullmatch(base) and not planned.names_deployment):
        return None
    for digest in dict.fromkeys(digests["model"] for step in steps if (digests := _inputs(store, step))):
        made = next((one for one in run.facts.steps if one.digest == digest and one.key), None)
        if made and (record := store.record(made.stage, made.key)) and store.holds(record):
            named = any(file["path"] == FILE for file in record.files)
            return decoding_of(store.tree(digest)) if named else None
        if not made and (ref := inputs.find(run.facts, digest)):
            return decoding_of(ref.locate(store))
    return None  # no model of it is there, so nothing of it can be computed


def _parts(store: Store, model: Model, base_dir: Path, inputs: Inputs) -> Iterator[Part]:
    """The steps of a model, looked up."""
    stages = ["evaluate", *["harness"] * bool(model.run.config.harness)]
    if why := _unknown(model.digests):
        yield from (
            Part(Entry(stage, model.step.label, "", "left out", place=model.step.place), why) for stage in stages
        )
        return
    for stage in stages:
        planned = model.run.steps(store, Children(0), base_dir, Planner())
        model.submit(planned, stage, inputs, model.step.label)
        (entry,) = planned.ledger
        if entry.state == "cached":
            yield Part(entry)
            continue
        reads = model.digests if stage == "evaluate" else {"model": model.digests["model"]}
        if stage == "harness" and model.run.tasks:
            reads |= {"tasks": model.run.tasks}
        missing = []
        for name, digest in reads.items():
            if name == "tasks" or inputs.find(model.run.facts, digest) is None:
                missing.append(_missing(model, name, digest))
        yield Part(entry, "; ".join(missing))


def _unknown(digests: dict[str, str]) -> str:
    """Why a model cannot be measured as its run did: empty, or a sentence."""
    if not digests:
        return "the record of the run's own step is no longer in the store, so it is not known what it read"
    if not {"model", "rows", "tokens"} <= digests.keys() <= READ.keys():
        return "an older version of spinloop measured it, from other inputs; run its profile again"
    return ""


def _missing(model: Model, name: str, digest: str) -> str:
    """A sentence on an input that is not there."""
    what = f"{READ[name].rstrip(',')} ({digest[:12]})"
    if name == "tasks":
        return f"{what} is not in the store; name it with --set harness.include_path=FOLDER"
    if any(step.digest == digest for step in model.run.facts.steps):
        return f"{what} is no longer in the store"
    return f"{what} was given to the run and is not in the store; name its folder or hub id with --source"


def _demand_used(given: Sequence[Ref], models: Sequence[Model]) -> None:
    """Raise BadInput for a source that no model of these is or reads."""
    read = {digest for model in models for digest in model.digests.values()}
    for ref in given:
        if ref.digest not in read:
            raise BadInput(
                f"--source {ref.hub or ref.path or ref.digest[:12]}: none of these runs was given this model (their "
                "content is compared); name the one that they began with."
            )


def name_of(models: Sequence[Model]) -> str:
    """What the comparison is called: `demo-evaluation-3fa9c1`, of runs, models and settings; runs of several profiles
    have no profile's name."""
    profiles = {model.run.config.name for model in models}
    chosen = [[model.run.facts.name, model.step.label] for model in models]
    settings = [keys.config_payload(model.run.config) | {"runtime": None} for model in models]
    digest = keys.key_of({"models": chosen, "settings": settings})[:6]
    return f"{profiles.pop()}-evaluation-{digest}" if len(profiles) == 1 else f"evaluation-{digest}"
