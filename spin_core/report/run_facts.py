"""What runs/<name>/ says of a run: its steps, their records, and what it started from.

    runs/<run>/
        NNN-<stage>-<label>           a link to the artifact of each step, in the order of the DAG
        best                          a link to the best model, by the gate
        report.html  report.md        the report, with what only the run knows: costs, lineage, steps
        steps.json                    the steps: stage, place, key, digest, cached or not, and why
        sources.json                  what was downloaded: hub, commit and digest of models and datasets
        costs-<time>-<id>.json        hours, tokens and steps of one start of the run, or of an evaluation of it
        throughput.json               of each iteration: shards, answers and tokens generated, and how fast
        model-card.md                 the card of the best model, as `spinloop push` sends it
        trained.json                  which rows it trained on, and when
        trained-rows  trained-tokens  links to these rows and their tokens, with which the next run compares its own
        watch.json                    what was new in the dataset at the last look
        pinned                        there while the run is pinned (`spinloop store pin`)
        .order                        how many runs began before this one

Views: they may be written again, and no look-up of a step reads them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.analysis.verdict import best_of
from spin_core.config.stage_table import makers
from spin_core.errors import BadInput, one_line
from spin_core.job import Entry
from spin_core.store.store import Store

SOURCES = "sources.json"
STEPS = "steps.json"


@dataclass(frozen=True)
class RunFacts:
    """What runs/<name>/ says of a run: its steps in the order of the DAG, and what it
    started from."""

    store: Store
    name: str
    steps: list[Entry]
    sources: list[dict]

    @property
    def models(self) -> dict[int, Entry]:
        """k → the step that made θ_k or imported it. Without θ_0 where the run started from it."""
        # In the order of the DAG, so that θ_0 is what SFT made of the demo's model.
        made = {step.place.model: step for step in self.steps if step.stage in makers("model") and step.digest}
        return {k: made[k] for k in sorted(k for k in made if k is not None)}

    @property
    def pairs(self) -> dict[int, Entry]:
        """t → the step that made the pairs of iteration t or imported them."""
        made = {step.place.iteration: step for step in self.steps if step.stage in makers("pairs") and step.digest}
        return {t: made[t] for t in sorted(t for t in made if t is not None)}

    @property
    def ended(self) -> bool:
        """Whether it came to its report: what a run that did not has of steps may be those of an early iteration."""
        return any(step.stage == "report" and step.digest for step in self.steps)

    @property
    def gates(self) -> list[Entry]:
        """The steps that decided, in order."""
        return [step for step in self.steps if step.stage == "gate" and step.digest]

    @property
    def decision(self) -> dict:
        """What the last gate decided; {} without gates."""
        return self.read(self.gates[-1], "decision.json") if self.gates else {}

    @property
    def first(self) -> int:
        """The k of the θ_k that the run began with: the gate counts models from it."""
        record = self.store.record("gate", self.gates[0].key) if self.gates else None
        return int(record.payload["config"].get("first", 0)) if record else 0

    def best(self) -> int:
        """The k of the best θ_k: by the last gate, else the last one. Raises BadInput where the run made no model."""
        if not self.models:
            raise BadInput(f"{self.name}: this run has made no model yet; run its profile again.")
        last = max(self.models)
        k = best_of([self.decision], last + 1 - self.first)
        return last if k is None else self.first + k

    def choose(self, which: str) -> int:
        """The k of `best`, `last`, `θ_2` or `2`. Raises BadInput for a model that this run has not made, and for `best`
        and `last` of a run that did not end."""
        named = re.fullmatch(r"(?:θ_|theta_)?(\d{1,3})", which)
        if which not in ("best", "last") and not named:
            raise BadInput(f"{which}: no name of a model; give best, last, or θ_2 (or 2) for that of iteration 2.")
        if not named and not self.ended and self.models:
            name = f"--model θ_{max(self.models)}"
            raise BadInput(f"{self.name}: {which}: the run did not end; run it again, or name a model: {name}.")
        k = self.best() if which == "best" else int(named[1]) if named else max(self.models, default=-1)
        if k not in self.models:
            had = ", ".join(f"θ_{i}" for i in self.models) or "none yet"
            what = f"its best model is θ_{k}, which" if which == "best" else f"θ_{k}" if k >= 0 else "the last model"
            raise BadInput(f"{self.name}: {what} was not made by this run (it made {had}); name one of these.")
        return k

    def measured(self, stage: str, k: int) -> Entry | None:
        """The step of this stage that measured θ_k, if it has an output."""
        return next((s for s in self.steps if (s.stage, s.place.model) == (stage, k) and s.digest), None)

    def read(self, step: Entry | None, file: str) -> dict[str, Any]:
        """A JSON object of a step's output; {} where there is none."""
        try:
            content = json.loads((self.store.tree(step.digest) / file).read_text(encoding="utf-8")) if step else {}
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def facts(self, step: Entry) -> dict[str, Any]:
        """The facts of a step's record; {} where there is none."""
        record = self.store.record(step.stage, step.key) if step.key else None
        return record.facts if record else {}


def read_run(store: Store, name: str = "") -> RunFacts:
    """The facts of a run (empty or `latest`: the latest). Raises BadInput, naming the runs there are, if there is
    none."""
    folder = store.root / "latest" if name in ("", "latest") else store.root / "runs" / name
    try:
        steps = read_steps(folder / STEPS)
    except (OSError, ValueError):
        there = ", ".join(run_names(store)) or "none"
        raise BadInput(
            f"{name or 'latest'}: there is no such run in {store.root.parent}; runs there: {there}."
        ) from None
    try:
        sources = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        sources = []
    return RunFacts(store, folder.resolve().name, steps, sources)


def run_names(store: Store) -> list[str]:
    """Of every run's folder; none where the store was copied without its empty folders."""
    below = store.root / "runs"
    return sorted(path.name for path in below.iterdir() if path.is_dir()) if below.is_dir() else []


def read_steps(file: Path) -> list[Entry]:
    """The ledger in runs/<name>/steps.json. Raises OSError, ValueError for what is no such file, and BadInput for one
    of a version that did not say yet what each step was for."""
    steps = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError("no list of steps")
    try:
        return [Entry.from_json(step) for step in steps]
    except KeyError:
        raise BadInput(
            f"{file}: written by an older version of spinloop, which did not keep what each step was for; run the same "
            "profile again: all its steps are cached, and this folder is laid out anew."
        ) from None
    except TypeError as error:
        raise ValueError(one_line(error)) from None


def best_tree(store: Store, name: str) -> str | None:
    """The content digest of the run's best model; None where the run did not make it (it started from it)."""
    run = read_run(store, name)
    return run.models[run.best()].digest if run.models and run.best() in run.models else None


def hub_ids(run: RunFacts, kind: str) -> list[str]:
    """The hub repositories of a kind that the run started from, each once."""
    paths = (one["hub"] for one in run.sources if one["kind"] == kind and one["hub"])
    return list(dict.fromkeys("/".join(path.split("/")[:2]) for path in paths))


def sources_file(sources: list[tuple[str, Any, str]]) -> bytes:
    """runs/<name>/sources.json of `(kind, reference, requested revision)`: hub ids with their commits, never a path."""
    lines = []
    for kind, ref, revision in sources:
        name, _, commit = ref.hub.rpartition("@")
        line = {"kind": kind, "hub": name, "revision": revision, "commit": commit, "split": ref.split}
        lines.append({**line, "digest": ref.digest})
    return json.dumps(lines, indent=1).encode()
