"""Which steps a loss makes of a run: the true DAG over the true stages, each computed in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.plan import costs, planned
from flows.spin import dag
from spin_core.config.profile import Config, parse
from spin_core.estimate import todo
from spin_core.job import Entry, Job
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, Step, look_up
from spin_core.sources.resolve import Ref
from spin_core.stages import score
from spin_core.store.store import Store
from tasks.runner.planning import Planner, forecasts
from tasks.runner.run import Run
from tests.flows.fixtures import TINY

SMALL: dict[str, Any] = {
    **{name: TINY[name] for name in ("name", "seed", "model", "chat", "runtime")},
    "dataset": {"path": "builtin:tasks", "limit": 24, "test_limit": 4, "shard_rows": 100},
    "generate": {"max_new_tokens": 4},
    "evaluate": {"answers": False},
}


class Here(Planner):
    """Looks a step up, and computes it in this process where it is not there."""

    def step(self, run: Any, step: Step, inputs: dict[str, Any]) -> Ref:
        """The step's output."""
        keyed = KeyedStep(step, inputs)
        record = look_up(run.store, keyed)
        state = "ran" if record is None else "Cached"
        if record is None:
            there = {
                name: [one.locate(run.store) for one in value] if isinstance(value, list) else value.locate(run.store)
                for name, value in inputs.items()
            }
            scratch = run.store.scratch(step.stage, keyed.key)
            job = Job(run.store.new_tree(), scratch, run.runtime, keyed.payload["inputs"])
            summary = step.module.run(there, step.config, job)
            record = run.store.publish(keyed.payload, job.out, {"summary": summary}, keyed.key)
        run.ledger.append(Entry(step.stage, step.label, keyed.key, state, digest=record.digest, place=step.place))
        return Ref(digest=record.digest)


def config_of(iterations: int = 2, history: int = 2, **changes: Any) -> Config:
    part = {"lr": 1e-4, "schedule_epochs": 1, "global_batch": 16, "max_length": 80, "warmup_ratio": 0.0}
    return parse({**SMALL, "iterations": iterations, "history": history, "finetune": {**part, **changes}}, "test")


def computed(config: Config, store: Store) -> list[Entry]:
    """The ledger of a run."""
    run = Run(config, store, Children(0), Path.cwd(), Here())
    dag(run)
    return run.ledger


def of(ledger: list[Entry], stage: str, state: str = "ran") -> list[str]:
    return [entry.label for entry in ledger if entry.stage == stage and entry.state == state]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all, with rows, tokens and θ_0, as every loss begins with them."""
    made = Store(tmp_path_factory.mktemp("losses"))
    computed(config_of(0), made)
    return made


def run_inputs(store: Store, entry: Entry) -> dict[str, Any]:
    """Content digests of what a step read, by name."""
    record = store.record(entry.stage, entry.key)
    assert record is not None
    return dict(record.payload["inputs"])


LOSSES = {
    "tspin": ({"loss": "tspin"}, []),
    "tpaw": (
        {"loss": "tpaw", "beta": 1.0},
        ["iter 0, pairs 0", "iter 1, pairs 1", "iter 1, pairs 0", "iter 1, pairs 1, θ_0"],
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_two_iterations_compute_just_the_scores_that_the_loss_names(name: str, store: Store, tmp_path: Path) -> None:
    """Catches a score step for a loss without a reference, one that is asked for twice in a run (θ_0's of its own
    pairs, which iteration 0 made), a plan or cost sheet that counts others than the run makes, and a second run that
    computes anything."""
    settings, scores = LOSSES[name]
    config = config_of(**settings)
    plan = planned(config, str(store.root.parent), tmp_path)
    data = todo.Data(20, 4, 10, 10, "")
    assert [entry.label for entry in plan.ledger if entry.stage == "score"] == scores
    assert len(todo.everything(config, data).score) == len(scores)
    assert any("score " in line for line in costs(config, tmp_path, None, data).lines) is bool(scores)
    ledger = computed(config, store)
    assert [*of(ledger, "score"), *of(ledger, "score", "Cached")] == scores
    assert of(ledger, "finetune") == ["iter 0", "iter 1"]
    reads = {entry.label: run_inputs(store, entry) for entry in ledger if entry.stage in ("finetune", "evaluate")}
    pairs = next(entry.digest for entry in ledger if entry.stage == "gather")
    assert (reads["iter 0"].get("first"), reads["iter 1"].get("first")) == (None, pairs if name == "tspin" else None)
    assert ("pairs" in reads["θ_2"]) is bool(scores), "margins are measured where there is a reference"
    assert len({entry.key for entry in ledger}) == len(ledger)
    again = computed(config, store)
    assert {entry.state for entry in again} == {"Cached"}
    assert [entry.digest for entry in again] == [entry.digest for entry in ledger]
    assert {entry.state for entry in planned(config, str(store.root.parent), tmp_path).ledger} == {"cached"}


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "unpaired"},
        {"loss": "tspin", "tspin": {"reference_free": False}},
        {"loss": "tpaw"},
        {"loss": "alpha"},
        {"loss": "dft"},
        {"loss": "dft", "dft": {"reference_free": True}},
    ],
    ids=["unpaired", "tspin against θ_t", "tpaw", "alpha", "dft", "dft alone"],
)
def test_plan_of_three_iterations_is_what_the_sheet_counts(settings: dict, store: Store, tmp_path: Path) -> None:
    """Catches a sheet of a run that cannot be planned with more or fewer scores than its DAG has, a DAG in which
    two steps have one name (a run's folder has a link for each), and a forecast from the score of another model than
    the opponent or of older pairs."""
    config = config_of(3, **settings)
    ledger, data = planned(config, str(store.root.parent), tmp_path).ledger, todo.Data(20, 4, 10, 10, "")
    rest = [entry for entry in ledger if entry.stage in ("score", "finetune")]
    assert len({entry.title for entry in ledger}) == len(ledger)
    counted = todo.everything(config, data)
    asked = []
    for place in (entry.place for entry in rest if entry.stage == "score"):
        asked.append((place.iteration, place.pairs, place.iteration if place.by is None else place.by))
    assert asked == counted.score
    assert [entry.place.iteration for entry in rest if entry.stage == "finetune"] == counted.finetune
    own = [f"iter {t}, pairs {t}" for t in range(3)] if asked else []
    assert [entry.label for entry in rest if forecasts(entry)] == own


class Before(Here):
    """Computes a score of older pairs as it was before it read the real answers of the newest: with all of its own."""

    def step(self, run: Any, step: Step, inputs: dict[str, Any]) -> Ref:
        """The step's output."""
        return super().step(run, step, {name: value for name, value in inputs.items() if name not in score.WORK_SAVING})


def test_older_pairs_read_the_real_answers_of_the_newest_and_their_key_says_so(store: Store, tmp_path: Path) -> None:
    """Catches a score that reads what its key does not name, one that is made before what it reads, and the opponent's
    score of its own pairs under another key than it had."""
    config = config_of(history=2)
    ledger = computed(config, store)
    newest, older = (one for one in ledger if one.stage == "score" and one.place.iteration == 1)
    assert (newest.label, older.label) == ("iter 1, pairs 1", "iter 1, pairs 0")
    reads, pairs = run_inputs(store, older), run_inputs(store, newest)["pairs"]
    assert run_inputs(store, newest).keys() == {"model", "pairs"}
    assert (reads["real_pairs"], reads["real_logps"]) == (pairs, newest.digest)
    record = store.record("score", older.key)
    assert record and record.facts["summary"]["real_logps"] == 28, "all rows are there in both"
    assert {entry.state for entry in planned(config, str(store.root.parent), tmp_path).ledger} == {"cached"}


def test_score_of_an_old_store_is_cached(tmp_path: Path) -> None:
    """Catches a store whose scores of older pairs, made without the newest's, are computed again; in a plan also where
    the newest's is gone."""
    config, old = config_of(history=2), Store(tmp_path / "old")
    run = Run(config, old, Children(0), Path.cwd(), Before())
    dag(run)
    (older,) = (one for one in run.ledger if one.label == "iter 1, pairs 0" and one.stage == "score")
    assert run_inputs(old, older).keys() == {"model", "pairs"}
    again = computed(config, old)
    assert {entry.state for entry in again} == {"Cached"}
    (newest,) = (one for one in again if one.label == "iter 1, pairs 1" and one.stage == "score")
    (file,) = (path for path in old.root.rglob("*") if path.is_file() and newest.key in str(path))
    file.unlink()
    plan = planned(config, str(old.root.parent), tmp_path).ledger
    assert {e.label: e.state for e in plan if e.stage == "score" and e.place.iteration == 1} == {
        "iter 1, pairs 1": "would run", "iter 1, pairs 0": "cached",
    }  # fmt: skip
    assert next(e for e in plan if e.label == "iter 1, pairs 0" and e.stage == "score").digest == older.digest
