"""Runs from Python, in a script or a notebook:

    from flows import api

    made = api.run("demo", finetune={"beta": 0.5})
    made.models["θ_2"]          # the folder of a model
    pandas.DataFrame(made.metrics)

Is not: the command line, which ends its process with an exit code. What goes wrong is raised here.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from flows.proxies import keep_loopback_direct
from flows.server import settings as server_settings
from spin_core.config.profile import Config, laid_over, load_profile, parse
from spin_core.errors import BadInput
from spin_core.job import Entry
from spin_core.report.run_facts import STEPS, RunFacts, read_run
from spin_core.store import runs as store_runs
from spin_core.store.opening import named, open_store

_own_server: list[Any] = []  # of this process, for all of its runs


@dataclass(frozen=True)
class Made:
    """What a run left in the store. The rows of `metrics` and `training` are for `pandas.DataFrame(rows)`."""

    facts: RunFacts

    @property
    def name(self) -> str:
        """Of the run: the profile's name and a digest of its settings."""
        return self.facts.name

    @property
    def folder(self) -> Path:
        """runs/<name>/ in the store."""
        return self.facts.store.root / "runs" / self.name

    @property
    def report(self) -> Path:
        """The page report.html; there once the run has ended."""
        return self.folder / "report.html"

    @property
    def models(self) -> dict[str, Path]:
        """Label → folder of each model that the run made: `θ_0`, `θ_1`, … (without θ_0 where it was given), and
        `best`, the last gate's choice."""
        made = {f"θ_{k}": self.facts.store.input_tree(step.digest) for k, step in self.facts.models.items()}
        best = self.facts.best() if made else None
        return made | ({"best": made[f"θ_{best}"]} if f"θ_{best}" in made else {})

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """A row for each model that was measured: `model`, `role` (start, iteration, control), `iteration`, the figures
        of evaluate's metrics.json (`nll/real`, `exact_match/greedy`, …), those of the harness as `harness/TASK`, and
        the gate's `outcome` after the iteration."""
        steps = self.facts.steps
        measured = {step.label: step for step in steps if step.stage == "harness" and step.digest}
        gates = {step.place.iteration: self.facts.read(step, "decision.json") for step in self.facts.gates}
        return [
            _named(step)
            | self.facts.read(step, "metrics.json")
            | _harness(self.facts.read(measured.get(step.label), "results.json"))
            | (
                {"outcome": gates.get(step.place.iteration, {}).get("outcome")}
                if step.place.role == "iteration"
                else {}
            )
            for step in steps
            if step.stage == "evaluate" and step.digest
        ]

    @property
    def training(self) -> list[dict[str, Any]]:
        """A row for each optimiser step of each training: `model`, `role`, `iteration`, and the figures of its
        metrics.jsonl."""
        rows = []
        for step in self.facts.steps:
            if step.stage in ("sft", "finetune") and step.digest:
                lines = (self.facts.store.tree(step.digest) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
                rows += [_named(step) | json.loads(line) for line in lines]
        return rows


def run(profile: str | Path | Mapping[str, Any], store: str | Path = "", **settings: Any) -> Made:
    """Run a profile (a path, the name of one that comes with spinloop, or its fields as a dict); what the store has is
    not computed again. `settings`: sections and fields that differ, as a profile nests them, `finetune={"beta": 0.5}`.
    `store`: a folder or URL (default: $SPINLOOP_STORE or .spinloop). Progress goes to standard error.

    Runs against Prefect's configured server, else against one of this process that lives as long. May be called where
    an event loop runs, as in a notebook, and blocks until the run has ended. Raises BadInput for what cannot be used,
    another SpinloopError for a run that failed."""
    place, (config, base_dir) = _place(store), _profile(profile, settings)
    server_settings.quiet()
    keep_loopback_direct()
    from flows.server.embedded import EmbeddedServer, check_answers

    url = server_settings.configured_server()
    if url:
        check_answers(url)
    elif not _own_server or _own_server[-1].process.poll() is not None:
        _own_server.append(EmbeddedServer())
    from flows.execute import spin
    from flows.plan import check

    check(config, place, base_dir)
    with nullcontext() if url else _own_server[-1].ready():
        outcome = cast(dict, spin(config, place, str(base_dir)))
    return made(outcome["run"], store)


def made(name: str = "latest", store: str | Path = "") -> Made:
    """A run of the store by its name. Raises BadInput, naming the runs there are, where there is none, and StoreError
    where there is no store."""
    return Made(read_run(open_store(_place(store), create=False, read_only=True), name))


def runs(store: str | Path = "") -> list[Made]:
    """Every run of the store, the one that began last at the end; also one that has not ended."""
    there = open_store(_place(store), create=False, read_only=True)
    folders = [path for path in (there.root / "runs").iterdir() if (path / STEPS).is_file()]
    return [Made(read_run(there, path.name)) for path in sorted(folders, key=store_runs.order)]


def _place(store: str | Path) -> str:
    return named(str(store) or os.environ.get("SPINLOOP_STORE", ".spinloop"))


def _profile(profile: str | Path | Mapping[str, Any], settings: dict[str, Any]) -> tuple[Config, Path]:
    """The config with what differs, and the folder that its relative paths begin at."""
    dotted = next((name for name in settings if "." in name), "")
    if dotted:
        section, _, field = dotted.partition(".")
        raise BadInput(f"{dotted}: give sections as dicts, {section}={{'{field}': …}}.")
    if not isinstance(profile, Mapping):
        return load_profile(str(profile), changes=settings)
    return parse(laid_over(copy.deepcopy(dict(profile)), settings), "profile"), Path.cwd()


def _named(step: Entry) -> dict[str, Any]:
    label = step.label if step.stage == "evaluate" else _trained(step)
    return {"model": label, "role": step.place.role, "iteration": step.place.iteration}


def _trained(step: Entry) -> str:
    """What a training makes, as the step that measures it calls it."""
    return f"SFT {step.label}" if step.place.model is None else f"θ_{step.place.model}"


def _harness(results: Mapping[str, Any]) -> dict[str, Any]:
    tasks = results.get("tasks") or {}
    figures = {f"harness/{name}": task.get("value") for name, task in tasks.items()}
    return figures | ({"harness/average": results["average"]} if "average" in results else {})
