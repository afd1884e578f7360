"""`spinloop store verify --recompute RUN[:STAGE[:T]]`: steps of a run computed again from what the store has, and what
came of each.

A step is made of its own record: stage, settings, and inputs by digest; it is computed as `run --redo` computes it, so
what stands stays and another output is kept beside it. Is not: a run (no profile is read, nothing is laid out for
people, and what is not there is not computed first).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spin_core.config.profile import changed
from spin_core.config.runtime import Runtime
from spin_core.config.stage_table import COMPUTING, ORDER, makers
from spin_core.errors import BadInput, SpinloopError
from spin_core.job import Entry
from spin_core.report.run_facts import RunFacts, read_run
from spin_core.runtime import gpus
from spin_core.runtime.child import Children
from spin_core.runtime.redo import promised, recompute
from spin_core.runtime.step import KeyedStep, Step, shards
from spin_core.sources import resolve
from spin_core.sources.resolve import Ref
from spin_core.store import keys
from spin_core.store.store import Record, Store
from tasks.runner.redo import Redo, parse

OPTION = "--recompute "
ELSEWHERE = Path("/nonexistent")  # a source by its hub id, never a folder of that name


class Lacking(Exception):
    """Why a step cannot be computed again, in words."""


@dataclass(frozen=True)
class Line:
    """A step: `differing`: files that came out otherwise; `why`: it could not be computed; `promised`: the same bytes
    were to come out."""

    entry: Entry
    differing: list[str]
    promised: bool = False
    why: str = ""

    @property
    def state(self) -> str:
        """`same`, `differs`, `not done`."""
        return "not done" if self.why else "differs" if self.differing else "same"

    @property
    def text(self) -> str:
        """What is said of it beside its title."""
        if self.why:
            return self.why
        if not self.differing:
            return self.entry.key[:12]
        meant = "should be the same here" if self.promised else "the same bytes are not promised here (docs/store.md)"
        return f"{', '.join(self.differing)} ({meant}); the new output is kept beside it"


class Inputs:
    """What steps of a run read, by digest: outputs of the store, parts of them, and sources of the hub."""

    def __init__(self, store: Store, run: RunFacts) -> None:
        self.store, self.run = store, run
        self._made = {record.digest: record for record in store.records()}
        self._whole: dict[str, bool] = {}
        self._parts: dict[str, Ref] = {}
        for step in run.steps:
            if step.stage == "tokenize" and (tree := store.tree(step.digest)) and (tree / "shards.json").is_file():
                self._parts |= {ref.digest: ref for ref in shards(store, Ref(step.digest))}

    def of(self, value: Any, name: str) -> Ref | list[Ref]:
        """The references for an input of a record's payload. Raises Lacking."""
        return [self._one(one, name) for one in value] if isinstance(value, list) else self._one(value, name)

    def _one(self, digest: str, name: str) -> Ref:
        if made := self._made.get(digest):
            if digest not in self._whole:  # hashed once for all steps that read it
                self._whole[digest] = self.store.lookup(made.stage, made.key) is not None
            if not self._whole[digest]:
                raise Lacking(f"its input {name} ({digest[:12]}, made by {made.stage}) is not whole in the store")
            return Ref(digest)
        if part := self._parts.get(digest):
            return part
        if ref := self._tokenizer(digest) if name == "tokenizer" else self._source(digest):
            return ref
        raise Lacking(f"its input {name} ({digest[:12]}) is not in the store: it came from outside, or gc removed it")

    def _tokenizer(self, digest: str) -> Ref | None:
        """The model whose tokenizer it is: every model of the run has it."""
        models = [Ref(step.digest) for step in self.run.steps if step.stage in makers("model") and step.digest]
        models = [ref for ref in models if ref.digest in self._made and self.store.tree(ref.digest).is_dir()]
        given = [one["digest"] for one in self.run.sources if one["kind"] in ("model", "checkpoint")]
        models += [ref for one in given if (ref := self._source(one))]
        found = (resolve.tokenizer_of(self.store, model) for model in models)
        return next((ref for ref in found if ref.digest == digest), None)

    def _source(self, digest: str) -> Ref | None:
        """What the run was given by a hub id, at its commit."""
        for one in self.run.sources:
            if one["digest"] == digest and one["hub"]:
                try:
                    ref = resolve.resolve(one["hub"], one["kind"], one["commit"], ELSEWHERE, one.get("split", ""))
                except BadInput as error:
                    raise Lacking(str(error).rstrip(".")) from error
                return ref if ref.digest == digest else None
        return None


def chosen(store: Store, asked: str) -> tuple[RunFacts, list[Entry]]:
    """A run and those of its steps that `RUN`, `RUN:STAGE` or `RUN:STAGE:T` names, each output once. Raises BadInput
    where there is no such run or step."""
    name, colon, step = asked.partition(":")
    run = read_run(store, name)
    redo = parse([step], option=f"{OPTION}{name}:") if colon else Redo([(stage, None) for stage in ORDER])
    steps: dict[str, Entry] = {}
    for entry in run.steps:
        own = [t for stage, t in redo.wanted if stage == entry.stage and t in (None, entry.place.iteration)]
        if own and entry.key:
            steps.setdefault(entry.key, entry)
    if not steps:
        there = dict.fromkeys(entry.stage for entry in run.steps if entry.key)
        raise BadInput(f"{OPTION}{asked}: this run has no such step; it has {', '.join(there) or 'none yet'}.")
    return run, [*steps.values()]


def recomputed(
    store: Store, run: RunFacts, steps: Sequence[Entry], settings: Sequence[str], send: Callable[[str, dict], None]
) -> Generator[Line, None, None]:
    """Compute these steps of a run again, one by one. `settings`: of the runtime, as `--set` takes them, in place of
    those that the records have. Raises BadInput for these, StoreError where the store cannot be written."""
    overlay = runtime_settings(settings)
    store.check_writable()
    inputs = Inputs(store, run)
    children, held = None, None
    try:
        for entry in steps:
            try:
                record, runtime = described(store, entry, overlay)
                keyed = keyed_of(record, entry, inputs)
                if held != runtime:
                    children = _renewed(children, runtime)
                    held = runtime
                assert children is not None
                made = recompute(store, keyed, runtime, children, partial(send, entry.title))
                yield Line(entry, made.differing, promised(record, runtime))
            except Lacking as why:
                yield Line(entry, [], why=str(why))
            except SpinloopError as error:
                yield Line(entry, [], why=str(error).rstrip("."))
    finally:
        if children:
            children.__exit__(None, None, None)


def _renewed(children: Children | None, runtime: Runtime) -> Children:
    """Processes for steps of another runtime: what one step sets in its process no other has."""
    if children:
        children.__exit__(None, None, None)
    return Children(1, gpus.groups(runtime, gpus.visible())).__enter__()


def runtime_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`runtime.threads=1` as fields. Raises BadInput for what is no setting of the runtime."""
    for setting in settings:
        if not setting.strip().startswith("runtime."):
            raise BadInput(f"--set {setting}: only runtime can be set here; the steps stay what they are.")
    given: dict[str, Any] = changed({}, settings).get("runtime", {})
    try:
        Runtime.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in ("runtime", *first["loc"]))
        raise BadInput(f"--set {field}: {first['msg'].lower()}; docs/settings.md has what it takes.") from None
    return given


def described(store: Store, entry: Entry, overlay: dict[str, Any]) -> tuple[Record, Runtime]:
    """A step's record, and the runtime to compute it with: as it was computed then. Raises Lacking."""
    record = store.record(entry.stage, entry.key)
    if record is None:
        raise Lacking("its record is no longer in the store")
    kept = record.facts.get("runtime")
    then = dict(kept) if isinstance(kept, dict) else {}
    had = (record.facts.get("device") or {}).get("gpus") if record.stage in COMPUTING else 0
    if had == 0:
        then["device"] = "cpu"
    try:
        runtime = Runtime.model_validate(then | overlay)
    except ValidationError:
        raise Lacking("it was computed with settings of the runtime that this spinloop does not have") from None
    if had and (runtime.device == "cpu" or not gpus.visible()):
        name = (record.facts.get("device") or {}).get("name") or "GPU"
        raise Lacking(f"it was computed on a GPU ({name}), and there is none here")
    return record, runtime


def keyed_of(record: Record, entry: Entry, inputs: Inputs) -> KeyedStep:
    """The step that a record was made of. Raises Lacking where this spinloop has no such step, or an input is gone."""
    if record.stage not in ORDER:
        raise Lacking("this spinloop has no such stage")
    module = importlib.import_module(f"spin_core.stages.{record.stage}")
    version = record.payload["version"]
    if version != module.VERSION:
        raise Lacking(f"version {version} of the stage computed it, and this spinloop has version {module.VERSION}")
    try:
        config = module.Config.model_validate(record.payload["config"])
    except ValidationError:
        raise Lacking("its settings are not those of this spinloop's stage") from None
    reads = {name: inputs.of(value, name) for name, value in record.payload["inputs"].items()}
    step = Step(module, entry.label, config, entry.place)
    keyed = KeyedStep(step, reads, {KeyedStep(step, reads).key: keys.take_of(record.payload)})
    if keyed.key != record.key:
        raise Lacking("this spinloop gives the step another key: its settings have other defaults now")
    return keyed
