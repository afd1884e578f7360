"""A plan: what each step would do. Looks steps up; of the missing ones only the cheap `reformat` and `tokenize` are
computed, for nobody to keep, because their shards say which answers are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from spin_core.job import Entry
from spin_core.runtime.step import KeyedStep, Step, compute, look_up
from spin_core.sources import resolve
from spin_core.sources.resolve import Ref
from spin_core.stages import reformat, tokenize
from spin_core.store import keys, takes
from spin_core.store.explain import explain
from spin_core.store.store import Record, Store
from tasks.runner.steps import Steps, listed

ONE_FOR_ALL = "the prompts' tokens are still to be made, so an iteration's shards of answers count as one step here."


@dataclass(frozen=True)
class Pending:
    """In a plan: what a step will write once it has run. `step` says which, `identity` to other plans."""

    step: str
    identity: str = ""


def _waits(value: Any) -> Pending | None:
    """The first step that an input (one reference, or a list of them) waits for."""
    return next((one for one in listed(value) if isinstance(one, Pending)), None)


def identity_of(step: Step, inputs: Mapping[str, Any]) -> str:
    """The same for the same step of two plans, also where its inputs are still to be made; not its key."""
    saved = getattr(step.module, "WORK_SAVING", ())
    digests: dict[str, str | list[str]] = {
        name: [one.identity if isinstance(one, Pending) else one.digest for one in listed(value)]
        for name, value in inputs.items()
        if name not in saved
    }
    config = keys.config_payload(step.config)
    return keys.key_of(keys.payload(step.stage, step.module.VERSION, config, digests))


def forecasts(step: Step | Entry) -> bool:
    """Whether the step scores the newest pairs of its iteration under the opponent, and so says what they can teach."""
    place = step.place
    return step.stage == "score" and place.pairs == place.iteration and place.by is None


class Planner:
    """Looks steps up instead of running them. `drafts` is a store that goes with the plan, for the rows and tokens that
    a run would write; None computes nothing at all."""

    def __init__(self, drafts: Store | None = None):
        self.drafts = drafts
        self.tokens: Path | None = None
        """Of the last planned tokens: their tree, for as long as the plan's own store is there."""
        self.notes: list[str] = []
        """What text of the dataset no row has, a sentence for each source; and what answers cached pairs leave out."""
        self.scores: dict[int, Mapping[str, Any]] = {}
        """Iteration → the summary of its opponent's score of its own pairs, where the store has it."""
        self.identities: list[str] = []
        """Of each entry of the ledger."""
        self.rows: dict[str, Record] = {}
        """Of reformat and of its rows' tokenize, by stage: the store's record, or the plan's own."""
        self._shard_rows: dict[str, int] = {}
        self._whys: dict[str, str] = {}

    def step(self, run: Steps, step: Step, inputs: dict[str, Any]) -> Ref | Pending:
        """Enter into the run's ledger what would happen to the step and why; its output, as far as it is known."""
        prompts = inputs.get("prompts")
        rows = self._shard_rows.get(prompts.digest) if isinstance(prompts, Ref) else None
        entry = Entry(step.stage, step.label, "", "would run", place=step.place)
        entry.summary = {} if rows is None else {"rows": rows}
        run.ledger.append(entry)
        self.identities.append(identity := identity_of(step, inputs))
        if isinstance(prompts, Pending) and ONE_FOR_ALL not in self.notes:
            self.notes.append(ONE_FOR_ALL)
        saved = getattr(step.module, "WORK_SAVING", ())
        waits = {name: first for name, value in inputs.items() if (first := _waits(value))}
        if waits.keys() <= {*saved}:  # it may be there as it was computed without them
            inputs = {name: value for name, value in inputs.items() if name not in waits}
        if waits.keys() - {*saved} or (waits and look_up(run.store, KeyedStep(step, inputs, run.takes)) is None):
            entry.why = f"reads what {next(iter(waits.values())).step} will write"
            return Pending(step.title, identity)
        keyed = KeyedStep(step, inputs, run.takes)
        record = look_up(run.store, keyed)
        if record is None:
            entry.why = self._why(run.store, keyed.payload)
            if step.module not in (reformat, tokenize) or self.drafts is None:
                return Pending(step.title, identity)
            made = self._draft(run, self.drafts, step, inputs)
            self._remember(step, made)
            entry.summary = made.facts["summary"]
            self.notes += entry.summary.get("unused", [])
            return Ref(digest=made.digest)
        self._remember(step, record)
        summary = record.facts.get("summary", {})
        self.notes += summary.get("unused", []) + [f"{step.title}: {said}" for said in summary.get("left_out", [])]
        entry.key, entry.state, entry.digest = record.key, "cached", record.digest
        entry.seconds = record.facts.get("seconds")
        entry.why = takes.in_words(keys.take_of(record.payload))
        if step.place.iteration is not None and forecasts(step):
            self.scores[step.place.iteration] = summary
        return Ref(digest=record.digest)

    def holder(self, store: Store, tokens: Ref) -> Store:
        """Which store has this tree of tokens: `store` or the plan's own. Remembers how long its shards are."""
        store = self._store_of(store, tokens)
        self.tokens = store.tree(tokens.digest)
        listed = json.loads((self.tokens / "shards.json").read_text(encoding="utf-8"))
        self._shard_rows |= {shard["sha256"]: shard["rows"] for shard in listed}
        return store

    def _store_of(self, store: Store, ref: Ref) -> Store:
        drafted = self.drafts and self.drafts.tree(ref.tree or ref.digest).is_dir()
        return self.drafts if self.drafts and drafted else store

    def _why(self, store: Store, payload: keys.KeyPayload) -> str:
        """What differs from the nearest stored step. Looked up once for all shards of an iteration, which differ in
        their prompts only, the last that can differ: it reads every record of the stage (a plan of 455 shards of
        another temperature: 9 s, and over 6 minutes when looked up for each)."""
        shared = {name: digest for name, digest in payload["inputs"].items() if name != "prompts"}
        family = keys.key_of({**payload, "inputs": shared})
        if family not in self._whys:
            self._whys[family] = explain(store, payload)
        return self._whys[family]

    def _remember(self, step: Step, record: Record) -> None:
        if step.module in (reformat, tokenize) and step.place.pairs is None:
            self.rows[step.stage] = record

    def _draft(self, run: Steps, drafts: Store, step: Step, inputs: Mapping[str, Ref]) -> Record:
        """What the step would write. What it reads of the user's store lies outside the plan's own."""
        there = {name: ref.locate(self._store_of(run.store, ref)) for name, ref in inputs.items()}
        read = {
            name: ref if ref.path else replace(ref, path=str(there[name]), stamp=resolve.stamp(there[name]))
            for name, ref in inputs.items()
        }
        send = partial(run.progress, step.title)
        record, _ = compute(drafts, KeyedStep(step, read), run.runtime, run.children, send)
        run.progress.step(f"read    {step.title}, to see its shards; nothing is kept", record.facts["seconds"])
        return record
