"""`spinloop sweep`: the variants of a profile as runs that share every cached step, their costs, and one report.

A variant is the profile with one value of each axis; its trainings differ in `finetune.seed` alone, so rows, answers
and scores of the first iteration are computed once for all. Each training is an ordinary run with a folder and report
of its own. Is not: a search.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from flows.plan import costs, looking_up, planned_in
from spin_core.analysis import sweep as analysis
from spin_core.analysis.format import setting_text
from spin_core.analysis.results import ModelResults
from spin_core.config.profile import Config, parse, put, read_profile
from spin_core.config.sweep import MOST
from spin_core.errors import BadInput, SpinloopError, Stopped, StoreError
from spin_core.estimate import sheet, text
from spin_core.report import sweep_page
from spin_core.report.stored_run import find, side_of
from spin_core.store import keys
from spin_core.store.opening import open_store
from spin_core.store.store import Store


@dataclass(frozen=True)
class Training:
    """One run of a sweep. `variant`: which one, from 0; `changes`: setting → value as text; `seed`: of its
    finetune."""

    variant: int
    label: str
    changes: dict[str, str]
    seed: int
    config: Config

    @property
    def title(self) -> str:
        """`beta 0.1, seed 4`"""
        return f"{self.label}, seed {self.seed}"

    @property
    def changed(self) -> tuple[str, ...]:
        """What is not as in the profile, as `--set` takes it."""
        seed = self.config.finetune.seed
        return (
            *(f"{name}={value}" for name, value in self.changes.items()),
            *[f"finetune.seed={seed}"] * (seed is not None),
        )


@dataclass(frozen=True)
class Trainings:
    """Of a whole sweep, the seeds of a variant one after the other. `name`: what its report is called."""

    name: str
    all: list[Training]
    base_dir: Path

    @property
    def variants(self) -> list[Training]:
        """The first training of each variant."""
        return list({one.variant: one for one in reversed(self.all)}.values())[::-1]


def trainings(
    profile: str, settings: Sequence[str] = (), over: dict[str, list[Any]] | None = None, seeds: int = 0,
    changes: dict[str, Any] | None = None,
) -> Trainings:  # fmt: skip
    """The runs of a sweep over a profile. `over`: setting → values, beside or in place of the profile's `sweep.over`;
    `seeds`: in place of its `sweep.seeds`, 0 as it is. Raises BadInput for a setting that is not there, an axis without
    values, no axis at all, and more than MOST runs."""
    data, path = read_profile(profile, settings, changes)
    if not isinstance(data, dict):
        parse(data, str(path))
    own = data.pop("sweep", None) or {}
    if not isinstance(own, dict) or not isinstance(own.get("over") or {}, dict):
        raise BadInput(
            f"{path}: sweep: over is a mapping of settings to lists, such as {{finetune.beta: [0.05, 0.1]}}."
        )
    made = {**own, "over": {**(own.get("over") or {}), **(over or {})}, **({"seeds": seeds} if seeds else {})}
    plain = parse({**data, "sweep": made}, str(path))
    sweep, first = plain.sweep, plain.seed if plain.finetune.seed is None else plain.finetune.seed
    assert sweep is not None
    if plain.runtime.approve:
        raise BadInput(f"{path}: runtime.approve: the runs of a sweep wait for nobody; leave it out.")
    if "finetune.seed" in sweep.over and sweep.seeds > 1:
        raise BadInput(f"{path}: finetune.seed is an axis, and --seeds varies it too; take one of the two.")
    if not sweep.over and sweep.seeds == 1:
        raise BadInput(
            f"{path}: nothing to sweep over; give --over finetune.beta=0.05,0.1 (or sweep.over), or --seeds 3."
        )
    if sweep.runs > MOST:
        sizes = " × ".join(
            [*(f"{len(values):,} of {name}" for name, values in sweep.over.items()), f"{sweep.seeds} seeds"]
        )
        raise BadInput(f"{path}: {sweep.runs:,} runs ({sizes}) are more than {MOST}; leave some values out.")
    listed = []
    for number, values in enumerate(product(*sweep.over.values())):
        chosen = dict(zip(sweep.over, values, strict=True))
        for seed in range(first, first + sweep.seeds):
            # The first has the run's own seed, so that an ordinary run of the variant is the same run.
            given = {**chosen, **({"finetune.seed": seed} if seed != first else {})}
            texts = {name: setting_text(value) for name, value in chosen.items()}
            listed.append(Training(number, _label(texts), texts, seed, _config(data, given, path)))
    digest = keys.key_of({"runs": [keys.config_payload(one.config) | {"runtime": None} for one in listed]})[:6]
    return Trainings(f"{plain.name}-sweep-{digest}", listed, path.resolve().parent)


def _config(data: dict, given: dict[str, Any], path: Path) -> Config:
    changed = deepcopy(data)
    for name, value in given.items():
        put(changed, name, value, f"--over {name}")
    put(changed, "runtime.min_new_rows", 0, "--over")  # a person asked for every run of it
    where = ", ".join(f"{name}={setting_text(value)}" for name, value in given.items())
    return parse(changed, f"{path} with {where}" if where else str(path))


def _label(changes: dict[str, str]) -> str:
    """`beta 0.1, lr 5e-07`: the last parts of the settings' names, or the whole names where two end alike."""
    ends = [name.rpartition(".")[2] for name in changes]
    names = ends if len(set(ends)) == len(ends) else list(changes)
    return ", ".join(f"{name} {value}" for name, value in zip(names, changes.values(), strict=True)) or "the profile"


@dataclass(frozen=True)
class Share:
    """Of one training: steps in all, of them `cached` in the store, `shared` with a training before it, and `adds`,
    which it alone brings; `lines`: the cost sheet of those."""

    training: Training
    steps: int
    cached: int
    shared: int
    adds: int
    lines: list[sheet.StageCost]


@dataclass(frozen=True)
class SweepPlan:
    """`costs`: the sheet of all trainings together, as text; `notes`: what the plans say, each once."""

    shares: list[Share]
    costs: list[str]
    notes: list[str]


def planned(sweep: Trainings, store: str, gpu: str = "", gpus: int = 0) -> SweepPlan:
    """What each training has in the store, shares with those before it, and adds. Computes nothing but rows and tokens;
    writes nothing to the store. Raises BadInput for an unknown `gpu`."""
    seen: set[str] = set()
    shares: list[Share] = []
    notes: list[str] = []
    basis: list[str] = []
    with looking_up(store) as place:
        for one in sweep.all:
            plan = planned_in(place, one.config, sweep.base_dir, measure=True)
            new = [
                entry
                for entry, step in zip(plan.ledger, plan.identities, strict=True)
                if step not in seen and entry.state != "cached"
            ]
            shared = sum(step in seen for step in plan.identities)
            seen |= set(plan.identities)
            cached = len(plan.ledger) - shared - len(new)
            sheets = costs(one.config, sweep.base_dir, new, plan.data, gpu, gpus)
            basis = sheets.basis or basis
            shares.append(Share(one, len(plan.ledger), cached, shared, len(new), sheets.stages))
            notes += [*plan.notes, *[f"{one.label}: this does not fit: {sheets.misfit}"] * bool(sheets.misfit)]
    stages = sheet.together([one.lines for one in shares])
    return SweepPlan(shares, [*(text.table(stages) if stages else []), *basis], [*dict.fromkeys(notes)])


@dataclass(frozen=True)
class Outcome:
    """What came of a sweep: its figures, its report as text, where the page lies, steps that ran and were cached, and
    the sentences of runs that failed."""

    made: analysis.Swept
    text: str
    page: Path
    ran: int
    cached: int
    failed: list[str]


def run_all(
    sweep: Trainings, run: Callable[[Training], dict], say: Callable[[str], None], at_once: int = 1
) -> list[dict | SpinloopError]:
    """Run every training, `at_once` side by side (their stages on work pools, which have limits of their own); of each
    what `run` gave, or the error that it failed with. One that fails does not keep the others from running; one that
    SIGTERM ended does (Stopped)."""

    def one(number: int, training: Training) -> dict | SpinloopError:
        say(f"run {number} of {len(sweep.all)}: {training.title}")
        try:
            return run(training)
        except Stopped:
            raise  # SIGTERM is for the sweep, not for this run alone
        except SpinloopError as error:
            say(f"{training.title} failed: {error}")
            return error

    numbered = [*enumerate(sweep.all, 1)]
    if at_once == 1:  # in this thread, so that SIGTERM and Ctrl-C reach the run
        return [one(number, training) for number, training in numbered]
    with ThreadPoolExecutor(at_once) as threads:
        begun = [threads.submit(copy_context().run, one, number, training) for number, training in numbered]
        return [future.result() for future in begun]


def report(sweep: Trainings, store: str, results: Sequence[dict | SpinloopError]) -> Outcome:
    """Compare the trainings that ended, and write runs/<name>.html and .json. Raises the first error where none did."""
    artifacts = open_store(store)
    variants: list[analysis.Variant] = []
    start: ModelResults | None = None
    with artifacts.using():
        for one, result in zip(sweep.all, results, strict=True):
            if one.variant == len(variants):
                variants.append(analysis.Variant(one.label, one.changes, []))
            if isinstance(result, SpinloopError):
                variants[-1].failed.append(f"seed {one.seed}: {result}")
                continue
            begun, training = _training(artifacts, one, str(result["run"]))
            start = start or begun
            variants[-1].trainings.append(training)
    errors = [result for result in results if isinstance(result, SpinloopError)]
    if len(errors) == len(results):
        raise errors[0]
    counts = [sum(one[name] for one in results if isinstance(one, dict)) for name in ("ran", "cached")]
    gate = sweep.all[0].config.gate
    made = analysis.compare(variants, start, gate.confidence, gate.alarmed_best)
    both = (counts[0], counts[1])
    page = artifacts.root / "runs" / f"{sweep.name}.html"
    facts = {"sweep": sweep.name, "ran": counts[0], "cached": counts[1]}
    data = json.dumps(analysis.as_json(made, facts), indent=1, ensure_ascii=False) + "\n"
    try:
        page.write_text(sweep_page.page(made, sweep.name, both), encoding="utf-8")
        page.with_suffix(".json").write_text(data, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{page}: cannot be written ({error.strerror}).") from None
    failed = [f"{one.label}, {said}" for one in variants for said in one.failed]
    return Outcome(made, sweep_page.text(made, both), page.resolve(), *both, failed)


def _training(store: Store, one: Training, run: str) -> tuple[ModelResults | None, analysis.Training]:
    """θ_0 of a run, and its last model with what the gate said of it."""
    side = side_of(store, find(store, run))
    last = [model for model in side.models if model.kind != "control"][-1]
    said = last.decision
    start = next((model for model in side.models if model.kind == "start"), None)
    alarm = str((said.get("alarms") or [""])[0])
    return start, analysis.Training(run, one.seed, last, str(said.get("metric") or ""), side.best, alarm)
