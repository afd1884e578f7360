"""Models measured again on work pools: real server, two real workers."""

from __future__ import annotations

import json

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from spin_core.store.store import Store

pytestmark = [pytest.mark.timeout(900), pytest.mark.full]
HERE = ("sft", "generate", "score", "finetune", "evaluate")
WARM = "evaluate.temperatures=[0.3]"


def test_models_are_measured_on_the_pool_and_found_by_the_command(
    spinloop, workers, api, gpu_runs, profile, store
) -> None:
    """Catches an evaluation that computes in the worker of the run, a pool that computes again what is there, other
    keys on a worker than on the command line, and a page that the UI does not have."""
    path = profile(runtime={"pools": dict.fromkeys(HERE, "here")})
    assert api.wait(api.start("spin/spin", file=str(path)), 400).state.name == "Completed"
    run = (Store(store).root / "latest").readlink().name
    ended = api.wait(api.start("evaluation/evaluation", runs=[run], settings=[WARM]), 400)
    assert ended.state.name == "Completed", ended.state.message
    assert "2 models of 1 run: 0 cached, 2 measured now, 0 left out. 2 steps ran" in ended.state.message
    assert len(gpu_runs.runs("evaluate")) == 2
    key = ArtifactFilter(key=ArtifactFilterKey(any_=["evaluation"]))
    (artifact,) = api.client.read_artifacts(artifact_filter=key, limit=5)
    assert f"{run}, θ_1" in artifact.data
    code, out, err = spinloop("evaluate", run, "--store", store, "--json", "--set", WARM)
    assert code == 0 and json.loads(out)["ran"] == 0, err
    given = ("--set", "evaluate.sampled=false", "--set", "runtime.pools.evaluate=spin-gpu", "--models", "θ_1")
    code, out, err = spinloop("evaluate", run, "--store", store, "--json", *given)
    assert code == 0 and json.loads(out)["ran"] == 1, err
    assert len(gpu_runs.runs("evaluate")) == 3


def test_evaluation_that_cannot_be_fails_with_its_sentence(workers, api, profile, store) -> None:
    """Catches bad input that is a traceback in the UI."""
    Store(store)
    ended = api.wait(api.start("evaluation/evaluation", runs=["nobody"]))
    assert ended.state.name == "Failed" and "nobody: no report of such a run" in ended.state.message
