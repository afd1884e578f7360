"""Steps computed again by a run of the deployment: real server, two real workers."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.schedules import IntervalSchedule

from flows.cli.doctor_server import _redone
from spin_core.analysis.account import account
from spin_core.report import costs_page
from spin_core.report.stored_run import executions
from spin_core.report.ui_pages import narrow
from spin_core.store.store import Store
from tests.flows.test_costs import plain
from tests.flows.test_redo import planted

pytestmark = pytest.mark.timeout(900)
HERE = dict.fromkeys(("sft", "finetune", "evaluate"), "here")


def ledger(place: Path) -> list[dict]:
    """The steps of the run that was started last."""
    return json.loads((Store(place).root / "latest" / "steps.json").read_text())


def page_of(api, key: str, run) -> str:
    """The text of a page that a flow run left in the UI."""
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
    (page,) = api.client.read_artifacts(artifact_filter=wanted)
    return page.data


@pytest.mark.full
def test_redo_runs_on_the_pool_of_its_stage_and_later_runs_take_what_came_out(
    workers, api, gpu_runs, profile, store
) -> None:
    """Catches a redo of a deployment that only looks the steps up, that computes in the run's own process, or once for
    each shard; a comparison that stays on the worker; a shard of the same bytes that is replaced; and a new output that
    no later run goes on from, or that takes the place of the first."""
    path, spent = profile(runtime={"pools": HERE}), account(executions(Store(store)))
    first = api.wait(api.start("spin/spin", file=str(path)))
    assert first.state.name == "Completed", first.state.message
    steps = ledger(store)
    shards = [step for step in steps if step["stage"] == "generate"]
    ours, before = shards[0], len(gpu_runs.runs())
    assert len(shards) > 1 and before == 2
    new = planted(Store(store), ours)

    asked = api.wait(api.start("spin/spin", file=str(path), redo=["generate:0", "score"], replace=True))
    assert asked.state.name == "Completed", asked.state.message
    assert asked.name.endswith("redo generate:0, redo score, replace"), asked.name
    again = gpu_runs.runs()[before:]
    assert [run.name.partition("[")[0] for run in again] == ["generate", "score"]
    assert all(run.name.endswith(", computed again") and run.work_pool_name == "spin-gpu" for run in again)
    said = json.loads(again[0].state.message)
    title = f"generate[{ours['label']}]"
    assert said["computed_again"] == len(shards) and said["first_time"] == [] and [*said["otherwise"]] == [title]
    assert said["otherwise"][title]["files"] == ["answers.jsonl"] and said["otherwise"][title]["replaced"] == 1
    redone = ledger(store)
    ran = [step for step in redone if step["state"] == "ran"]
    assert {step["stage"] for step in ran} == {"generate", "score"} and len(ran) == len(shards) + 1
    lines = page_of(api, "pooled-redo", asked).replace("\u200b", "").replace("\\", "").splitlines()
    assert sum("the same bytes; the output stays, as there is nothing to replace" in line for line in lines) == len(
        shards
    )
    (taken,) = [line for line in lines if "every run goes on from the new output from now on" in line]
    assert title in taken and "answers.jsonl" in taken

    later = api.wait(api.start("spin/spin", file=str(path)))
    assert later.state.name == "Cached" and later.state.message.startswith("0 steps ran"), later.state.message
    assert len(gpu_runs.runs()) == before + 2
    taken_now = next(step for step in ledger(store) if step["digest"] == new)
    assert taken_now["key"] != ours["key"] and Store(store).takes.read() == {ours["key"]: 1}
    record = Store(store).lookup("generate", ours["key"])
    assert record is not None and record.digest != new, "the first output is gone"

    # What the three runs cost, those of the pool's flow runs too, and the page that the last one left.
    now = account(executions(Store(store)))
    sums = plain(Store(store), [steps, redone, ledger(store)])
    for which in ("used", "saved"):
        after, before_ = getattr(now.total, which), getattr(spent.total, which)
        more = {name: after[name] - before_[name] for name in after}
        assert more == pytest.approx(dict.fromkeys(after, 0.0) | sums[which], abs=1e-6), which
    assert now.total.executions - spent.total.executions == 3
    assert page_of(api, "store-costs", later) == narrow(costs_page.text(now, {}))


@pytest.mark.full
def test_redo_that_cannot_be_fails_with_its_sentence(deployed, workers, api, profile) -> None:
    """Catches bad input of the form that is a traceback, or a run that redoes nothing."""
    ended = api.wait(api.start("spin/spin", file=str(profile()), redo=["generates"]))
    assert ended.state.name == "Failed" and "--redo generates: there is no such stage" in ended.state.message


def test_doctor_names_a_redo_that_is_stored(deployed, api) -> None:
    """Catches a schedule that computes steps again each week without anybody's knowing, and one that is off."""
    spin = api.client.read_deployment_by_name("spin/spin").id
    assert _redone(api.client) == []
    when = IntervalSchedule(interval=timedelta(days=7), anchor_date=datetime.now(UTC) + timedelta(days=6))
    wanted = [
        DeploymentScheduleCreate(schedule=when, active=active, parameters={"redo": [step]}, slug=f"redo-{step}")
        for active, step in ((True, "score"), (False, "gate"))
    ]
    made = api.client.create_deployment_schedules(spin, wanted)
    try:
        (line,) = _redone(api.client)
    finally:
        for one in made:
            api.client.delete_deployment_schedule(spin, one.id)
    assert line[:2] == ("-", "spin/spin") and "by the schedule redo-score computes score again" in line[2]
