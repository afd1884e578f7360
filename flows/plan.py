"""Before a run: what it would do (`planned`), what that costs (`costed`), and whether it can begin (`check`).

Is not: the estimate itself; what is known of model, rows and GPUs here is handed to `spin_core.estimate`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from flows import live
from flows.spin import dag, sources
from spin_core.analysis.decoders import sentences
from spin_core.config.profile import Config
from spin_core.engines.harness.calls import check_here as check_harness
from spin_core.engines.table import ENGINES
from spin_core.errors import BadInput, Unreachable
from spin_core.estimate import fit, hardware, sheet, text, todo
from spin_core.estimate.architecture import sizes
from spin_core.estimate.needs import NEEDS, Setting
from spin_core.job import Entry
from spin_core.report import watch
from spin_core.runtime import gpus
from spin_core.runtime.child import Children
from spin_core.sources.resolve import resolve
from spin_core.store.opening import exists, open_store
from spin_core.store.store import Store
from tasks.runner.planning import Planner
from tasks.runner.run import Run, run_name
from tasks.runner.watch import look

SMALL = 1_000_000_000
"""Weights below which a model is taken to run here where no GPU is seen."""


@dataclass(frozen=True)
class Plan:
    """What a run would do: its ledger, what the store says of itself and reformat of unused text, and what is known of
    the rows."""

    ledger: list[Entry]
    notes: list[str]
    data: todo.Data | None = None
    decoders: str = ""
    """How the opponent and the held-out answers are decoded."""
    new: str = ""
    """What is new in the dataset since the last run that trained, in Markdown; empty for a first run."""
    identities: Sequence[str] = ()
    """Of each entry of the ledger; steps of two plans with the same one are the same step, also where what it reads is
    still to be made."""


@dataclass(frozen=True)
class Costs:
    """The sheet as `lines` of text, empty where there is none, and its `stages`; `basis`: those of the lines that say
    what it rests on; `misfit`: the sentence of what cannot fit; `certain`: the GPUs were seen or named, so that it is a
    refusal."""

    lines: list[str]
    misfit: str = ""
    certain: bool = False
    stages: list[sheet.StageCost] = field(default_factory=list)
    basis: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where plans look steps up, and where the rows and tokens go that they cannot do without."""

    artifacts: Store
    drafts: Store
    children: Children


@contextmanager
def looking_up(store: str) -> Iterator[Place]:
    """Inside, plans look at `store` and write nothing to it; where there is none yet nothing is cached."""
    with TemporaryDirectory(prefix="spinloop-plan-") as folder, Children(1) as children:
        drafts = Store(Path(folder))
        there = exists(store)
        artifacts = open_store(store, create=False, read_only=True) if there else drafts
        yield Place(artifacts, drafts, children)


def planned(config: Config, store: str, base_dir: Path, measure: bool = False) -> Plan:
    """What a run would do; of its rows something is known where they are to be measured. Computes nothing but rows and
    tokens, where dataset or tokenizer are others than before; nothing is written to the store."""
    _check_alone(config)
    with looking_up(store) as place:
        return planned_in(place, config, base_dir, measure, watched=measure)


def planned_in(place: Place, config: Config, base_dir: Path, measure: bool = False, watched: bool = False) -> Plan:
    """As `planned`, beside other plans; `watched`: says what is new in the dataset."""
    planner = Planner(place.drafts)
    run = Run(config, place.artifacts, place.children, base_dir, planner)
    run.progress.view = live.view()
    dag(run)
    decoders, *warnings = sentences(config, run.deployed)
    ahead = {e.place.iteration for e in run.ledger if e.stage == "finetune" and e.state != "cached"}
    forecasts = [
        f"iteration {t}: {' '.join(said)}"
        for t, summary in planner.scores.items()
        if t in ahead and (said := run.forecast(t, summary))
    ]
    notes = [*place.artifacts.notes, *planner.notes, *_not_picked(config, run.ledger), *warnings, *forecasts]
    new = _new(run, planner) if watched else ""
    return Plan(run.ledger, notes, _rows(run) if measure else None, decoders, new, planner.identities)


def _new(run: Run, planner: Planner) -> str:
    seen = look(run.store, run.config, run_name(run.config), planner.rows)
    return watch.text(seen) if seen.since else ""


def _not_picked(config: Config, ledger: Sequence[Entry]) -> list[str]:
    """Of iterations whose answers are still to be gathered: how many will be in no pair, a sentence for each number."""
    ahead: dict[int, list[str]] = {}
    for entry in ledger:
        t = entry.place.iteration
        if entry.stage == "gather" and entry.state != "cached" and t is not None:
            at = config.at(t)
            if at.gather.pick != "all":
                ahead.setdefault(at.generate.n, []).append(str(t))
    return [
        f"gather.pick: of {n} answers to a prompt {n - 1} will be in no pair (iteration {', '.join(of)})."
        for n, of in ahead.items()
    ]


def _rows(run: Run) -> todo.Data | None:
    """What is known of the rows of a planned run; None where they are still to be made. Without a tokenizer their
    number."""
    if run.planning is None:
        return None
    if run.planning.tokens:
        return todo.measured(run.planning.tokens)
    record = run.planning.rows.get("reformat")
    summary = record.facts["summary"] if record else {}
    return todo.counted(run.config, summary["train_rows"], summary["test_rows"]) if summary else None


def costed(config: Config, store: str, base_dir: Path, gpu: str = "", count: int = 0) -> tuple[Plan, Costs]:
    """The plan and its cost sheet, for `count` GPUs of the name `gpu` a node, or this machine's GPUs. Where the hub
    cannot be reached the ledger is empty, a note says why, and the costs are those of a run of which nothing is
    cached."""
    if gpu or count:  # a misspelt name is refused before a dataset is read
        hardware.choose(gpu, count, True)
    try:
        made = planned(config, store, base_dir, measure=True)
    except Unreachable as error:
        decoders, *warnings = sentences(config, None)
        made = Plan([], [str(error), *warnings], decoders=decoders)
    return made, costs(config, base_dir, made.ledger or None, made.data, gpu, count)


def costs(
    config: Config, base_dir: Path, ledger: Sequence[Entry] | None, data: todo.Data | None, gpu: str = "", gpus: int = 0
) -> Costs:  # fmt: skip
    """The sheet of a planned run, where a stage whose steps are all cached has no line; `ledger` None is one of which
    nothing is known to be cached, `data` None assumes the rows. Raises BadInput for an unknown `gpu`."""
    setting = setting_of(config, base_dir, data, gpu, gpus)
    if isinstance(setting, str):
        return Costs([setting], basis=[setting])
    counted = todo.everything(config, setting.data) if ledger is None else todo.of_ledger(ledger, setting.data)
    shown = sheet.lines(setting, config, counted)
    if not shown:
        return Costs([])
    basis = text.basis(setting, config, shown, ledger is None)
    misfit = fit.misfit(setting, config, [line.stage for line in shown])
    return Costs([*text.table(shown), *basis], misfit, setting.hardware.certain, shown, basis)


def setting_of(config: Config, base_dir: Path, data: todo.Data | None, gpu: str = "", gpus: int = 0) -> Setting | str:
    """What an estimate is made with, or in one sentence why there is none."""
    model = sizes(config.model.path, config.model.revision, base_dir)
    if isinstance(model, str):
        hardware.choose(gpu, gpus, True)
        return model
    device = config.runtime.device
    chosen = hardware.choose(gpu, gpus, model.weights < SMALL) if gpu or device != "cpu" else hardware.CPU
    return Setting(model, data or todo.assumed(config), chosen)


def next_iteration(config: Config, store: str, base_dir: Path) -> int:
    """The first iteration whose evaluated model the store does not have; `config.iterations` where it has them all."""
    ledger = planned(config, store, base_dir).ledger
    first = config.start.iteration
    there = {(entry.stage, entry.place.model) for entry in ledger if entry.state == "cached"}
    wanted = ({("finetune", t + 1), ("evaluate", t + 1)} for t in range(first, config.iterations))
    return next((t for t, steps in enumerate(wanted, first) if not steps <= there), config.iterations)


def check(config: Config, store: str, base_dir: Path, pool: str = "here") -> None:
    """Raise what is wrong with the store, the sources or this machine's engines before anything is waited for. `pool`:
    of the stages that `runtime.pools` does not name."""
    _check_alone(config)
    if config.runtime.approve and pool == "here":
        raise BadInput(
            "runtime.approve: only a run of a deployment can wait for a person; start one "
            "(docs/server.md), or leave it out."
        )
    check_machine(config, ["generate", *["evaluate"] * config.evaluate.answers, "harness"], pool)
    if config.harness and config.harness.include_path:
        resolve(config.harness.include_path, "tasks", "", base_dir)
    if config.runtime.pools.any_here(pool):
        gpus.groups(config.runtime, gpus.visible())
    sources(Run(config, open_store(store, runs=False), Children(0), base_dir, Planner()))
    _check_memory(config, store, base_dir, pool)


def check_machine(config: Config, stages: Collection[str], pool: str = "here") -> None:
    """Raise BadInput where those of `stages` that run here lack what they answer prompts or compute benchmarks with."""
    here = {stage for stage in stages if config.runtime.pools.of(stage, pool) == "here"}
    if here & {"generate", "evaluate"}:
        for engine in sorted({config.at(t).generate.engine for t in range(config.iterations)}):
            ENGINES[engine].check(config.runtime)
    if config.harness and "harness" in here:
        check_harness(config.harness, config.runtime)


def _check_alone(config: Config) -> None:
    """Raise BadInput for a profile of several runs."""
    if config.sweep:
        raise BadInput(
            "sweep: this profile is of several runs; `spinloop sweep` runs them, and `--set sweep=` leaves the section "
            "out."
        )


def _check_memory(config: Config, store: str, base_dir: Path, pool: str) -> None:
    """Raise BadInput where a stage that is not cached cannot fit into the GPUs that the driver shows."""
    if not _refusal(config, base_dir, pool):  # of all stages: what is cached is looked up only if it matters
        return
    ledger = planned(config, store, base_dir).ledger
    if why := _refusal(config, base_dir, pool, {entry.stage for entry in ledger if entry.state != "cached"}):
        raise BadInput(f"{why} `spinloop plan` shows what each stage needs.")


def _refusal(config: Config, base_dir: Path, pool: str, missing: Collection[str] = tuple(NEEDS)) -> str:
    """Empty, or why the GPUs that the driver shows are too small for one of the stages `missing` that runs here."""
    setting = setting_of(config, base_dir, None)
    if isinstance(setting, str) or not setting.hardware.certain:
        return ""
    there = {"sft": config.sft or config.control, "harness": config.harness}
    here = [name for name in NEEDS if name in missing and there.get(name, True)]
    return fit.misfit(setting, config, [name for name in here if config.runtime.pools.of(name, pool) == "here"])
