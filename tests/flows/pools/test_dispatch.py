"""Iterations whose stages run on a work pool: real server, two real workers."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest

from spin_core.store.store import Store
from tests.flows.pools.conftest import in_full

pytestmark = pytest.mark.timeout(600)
LIGHT = {"pools": {"score": "here", "evaluate": "here"}}  # three stages on the pool are enough, and 10 s each


@pytest.mark.full
def test_concurrent_runs_share_their_steps_within_the_pools_limit(workers, api, gpu_runs, profile, store) -> None:
    """Catches a step that two runs compute at the same time, a pool limit that is not kept, a rerun that reaches for a
    GPU, and a batch of shards in more than one flow run."""
    one = profile(runtime=LIGHT, seed=int(time.time()))
    other = profile(runtime=LIGHT, seed=int(time.time()), finetune={"beta": 0.5})
    other.write_text(other.read_text().replace(seed(other), seed(one)))
    before = len(list(Store(store).records()))
    ids = [api.start("spin/spin", file=str(path)) for path in (one, other)]
    ended = [api.wait(run, 400) for run in ids]
    assert [run.state.name for run in ended] == ["Completed", "Completed"], "\n".join(r.state.message for r in ended)
    counts = {stage: len(gpu_runs.runs(stage)) for stage in ("sft", "generate", "finetune")}
    assert counts == {"sft": 1, "generate": 1, "finetune": 2}
    ran = sum(int(run.state.message.split()[0]) for run in ended)
    new = len(list(Store(store).records())) - before
    assert ran == new, f"the two runs do not count each step once: {ran} of {new}; both computed {both_ran(store)}"
    turns = sorted((run.start_time, run.end_time) for run in gpu_runs.runs())
    assert all(first[1] <= second[0] for first, second in pairwise(turns)), "two runs at once on a pool of limit 1"
    again = api.wait(api.start("spin/spin", file=str(one)))
    assert again.state.name == "Cached" and again.state.message.startswith("0 steps ran"), again.state.message
    assert len(gpu_runs.runs()) == 4


def both_ran(store) -> list[str]:
    """Titles of the steps that the two newest ledgers both have as computed."""
    ledgers = sorted((Store(store).root / "runs").glob("*/steps.json"), key=lambda file: file.stat().st_mtime)[-2:]
    keys = [
        {one["key"]: one["stage"] for one in json.loads(file.read_text()) if one["state"] == "ran"} for file in ledgers
    ]
    return sorted(keys[0][key] for key in keys[0].keys() & keys[-1].keys())


def seed(path) -> str:
    """The line of a profile that has its seed."""
    return next(line for line in path.read_text().splitlines() if line.startswith("seed"))


@in_full
def test_stage_that_a_person_starts_shares_the_cache(workers, api, gpu_runs, profile, store) -> None:
    """Catches a stage deployment that computes what an iteration has, and an input that a person cannot write."""
    path = profile(iterations=0, runtime={"pools": {"evaluate": "here"}})
    assert api.wait(api.start("spin/spin", file=str(path))).state.name == "Completed"
    latest = Store(store).root / "latest"
    trees = {name: next(latest.glob(f"*-{name}*")).resolve().name for name in ("demo_model", "reformat", "sft")}
    (stage_run,) = gpu_runs.runs("sft")
    config = api.client.read_flow_run(stage_run.id).parameters["config"]
    work = [{"inputs": {"model": trees["demo_model"], "rows": trees["reformat"]}}]
    ended = api.wait(api.start("sft/spin-gpu", config=config, work=work))
    assert ended.state.message == "0 steps ran, 1 was cached."


@pytest.mark.full
def test_run_of_another_store_is_refused_before_it_computes(
    workers, api, gpu_runs, profile, spinloop, tmp_path
) -> None:
    """Catches a pool that computes into a store that the run does not see: an hour paid for nothing."""
    code, _, err = spinloop(
        "run", profile(iterations=0), "--store", tmp_path / "other", "--set", "runtime.pools.sft=spin-gpu"
    )
    assert code == 2, err
    assert "this worker's store is another than that of the run that asks" in err.splitlines()[-1]
    assert "Traceback" not in err and gpu_runs.states("sft") == ["Failed"]


@pytest.mark.full
def test_pool_without_such_a_deployment_is_one_sentence(deployed, profile, spinloop, tmp_path) -> None:
    """Catches a traceback, or a run that waits for ever, where runtime.pools names nothing."""
    code, _, err = spinloop(
        "run", profile(iterations=0), "--store", tmp_path / "store", "--set", "runtime.pools.sft=spin-tpu"
    )
    assert code == 2
    assert "runtime.pools.sft: the server has no deployment sft/spin-tpu" in err.splitlines()[-1]
