"""A sweep as a run of its deployment: real server, two real workers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from spin_core.store.store import Store

pytestmark = [pytest.mark.timeout(900), pytest.mark.full]
HERE = ("sft", "score", "evaluate")


def test_sweep_on_pools_shares_its_steps_and_shows_its_report(workers, api, gpu_runs, profile, store) -> None:
    """Catches variants that each generate for themselves though they run side by side, runs of a sweep that are on no
    page of the UI, and a sweep that is not in the store when its flow run has ended."""
    path = profile(runtime={"pools": dict.fromkeys(HERE, "here")})
    over = {"finetune.beta": [1.0, 0.25]}
    ended = api.wait(api.start("sweep/sweep", file=str(path), over=over, seeds=2, at_once=2), 800)
    assert ended.state.name == "Completed", ended.state.message
    assert [len(gpu_runs.runs(stage)) for stage in ("generate", "finetune")] == [1, 4]
    assert "exact match" in ended.state.message and "steps ran" in ended.state.message
    (page,) = (Store(store).root / "runs").glob("pooled-sweep-*.html")
    figures = json.loads(Path(page).with_suffix(".json").read_text())
    assert [len(one["runs"]) for one in figures["variants"]] == [2, 2] and figures["ran"] > 8
    key = ArtifactFilter(key=ArtifactFilterKey(any_=["pooled-sweep"]))
    (artifact,) = api.client.read_artifacts(artifact_filter=key, limit=5)
    assert "beta 0.25" in artifact.data
    again = api.wait(api.start("sweep/sweep", file=str(path), over=over, seeds=2), 400)
    assert "0 steps ran" in again.state.message, again.state.message


def test_sweep_that_cannot_be_fails_with_its_sentence(deployed, workers, api, profile) -> None:
    """Catches bad input that is a traceback in the UI."""
    ended = api.wait(api.start("sweep/sweep", file=str(profile()), over={"finetune.betta": [1]}))
    assert ended.state.name == "Failed" and "finetune.betta" in ended.state.message
