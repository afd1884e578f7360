"""What runs/<name>/ says of a run: its steps, their records, and what it started from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spin_core.analysis.verdict import best_of
from spin_core.errors import BadInput
from spin_core.store.store import Store

SOURCES = "sources.json"


@dataclass(frozen=True)
class RunFacts:
    """What runs/<name>/ says of a run: its steps (`tasks/runner/ledger.py`) in the order of the DAG, and what it
    started from."""

    store: Store
    name: str
    steps: list[dict]
    sources: list[dict]

    @property
    def models(self) -> dict[int, dict]:
        """k → the step that made θ_k. Without θ_0 where the run started from it."""
        made = {}
        for step in self.steps:
            iteration = re.fullmatch(r"iter (\d+)", step["label"])
            if step["stage"] == "finetune" and iteration and step["digest"]:
                made[int(iteration[1]) + 1] = step
            elif step["stage"] == "demo_model" and step["digest"]:
                made.setdefault(0, step)
            elif (step["stage"], step["label"]) == ("sft", "θ_0") and step["digest"]:
                made[0] = step
            elif step["stage"] == "import_model" and (named := re.match(r"θ_(\d+)", step["label"])) and step["digest"]:
                made[int(named[1])] = step
        return dict(sorted(made.items()))

    @property
    def ended(self) -> bool:
        """Whether it came to its report: what a run that did not has of steps may be those of an early iteration."""
        return any(step["stage"] == "report" and step["digest"] for step in self.steps)

    @property
    def decision(self) -> dict:
        """What the last gate decided; {} without gates."""
        gates = [step for step in self.steps if step["stage"] == "gate" and step["digest"]]
        return self.read(gates[-1], "decision.json") if gates else {}

    @property
    def first(self) -> int:
        """The k of the θ_k that the run began with: the gate counts models from it."""
        gates = [step for step in self.steps if step["stage"] == "gate" and step["digest"]]
        record = self.store.record("gate", gates[0]["key"]) if gates else None
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
            told = f"its best model is θ_{k}, which" if which == "best" else f"θ_{k}" if k >= 0 else "the last model"
            raise BadInput(f"{self.name}: {told} was not made by this run (it made {had}); name one of these.")
        return k

    def step(self, stage: str, label: str) -> dict | None:
        """The step of this stage and label, if it has an output."""
        found = (s for s in self.steps if (s["stage"], s["label"]) == (stage, label) and s["digest"])
        return next(found, None)

    def read(self, step: Mapping | None, file: str) -> dict:
        """A JSON object of a step's output; {} where there is none."""
        try:
            found = json.loads((self.store.tree(step["digest"]) / file).read_text()) if step else {}
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def read_run(store: Store, name: str = "") -> RunFacts:
    """The facts of a run (empty or `latest`: the latest). Raises BadInput, naming the runs there are, if there is
    none."""
    folder = store.root / "latest" if name in ("", "latest") else store.root / "runs" / name
    try:
        steps = json.loads((folder / "steps.json").read_text())
        assert isinstance(steps, list)
    except (OSError, ValueError, AssertionError):
        found = sorted(path.name for path in (store.root / "runs").iterdir() if path.is_dir())
        there = ", ".join(found) or "none"
        raise BadInput(
            f"{name or 'latest'}: there is no such run in {store.root.parent}; runs there: {there}."
        ) from None
    try:
        sources = json.loads((folder / SOURCES).read_text())
    except (OSError, ValueError):
        sources = []
    return RunFacts(store, folder.resolve().name, steps, sources)


def best_tree(store: Store, name: str) -> str | None:
    """The content digest of the run's best model; None where the run did not make it (it started from it)."""
    run = read_run(store, name)
    return run.models[run.best()]["digest"] if run.models and run.best() in run.models else None


def _record(run: RunFacts, step: Mapping) -> dict[str, Any]:
    record = run.store.record(step["stage"], step["key"]) if step.get("key") else None
    return record.facts if record else {}


def hub_ids(run: RunFacts, kind: str) -> list[str]:
    """The hub repositories of a kind that the run started from, each once."""
    return list(dict.fromkeys(_repo(one["hub"]) for one in run.sources if one["kind"] == kind and one["hub"]))


def _repo(path: str) -> str:
    return "/".join(path.split("/")[:2])


def sources_file(found: list[tuple[str, Any, str]]) -> bytes:
    """runs/<name>/sources.json of `(kind, reference, asked revision)`: hub ids with their commits, never a path."""
    lines = []
    for kind, ref, revision in found:
        name, _, commit = ref.hub.rpartition("@")
        line = {"kind": kind, "hub": name, "revision": revision, "commit": commit, "split": ref.split}
        lines.append({**line, "digest": ref.digest})
    return json.dumps(lines, indent=1).encode()
