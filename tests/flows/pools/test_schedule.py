"""Runs that nobody starts by hand: a schedule, and the event of a new model."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.schedules import IntervalSchedule

from tests.flows.pools.conftest import Api, Since, in_full, until

pytestmark = pytest.mark.timeout(600)
LIGHT = {"pools": {"sft": "here", "score": "here", "evaluate": "here"}}


def scheduled(api: Api, path: Path, number: int):
    """Have the server start a run of this profile by a schedule of its own; the run, once it has ended."""
    deployment = api.client.read_deployment_by_name("spin/spin")
    soon = datetime.now(UTC) + timedelta(seconds=12)  # the scheduler looks every 4 s, and never back
    once = DeploymentScheduleCreate(
        schedule=IntervalSchedule(interval=timedelta(days=7), anchor_date=soon),
        active=True,
        parameters={"file": str(path)},
        slug=f"test-{path.stem}-{number}",
    )
    (made,) = api.client.create_deployment_schedules(deployment.id, [once])
    name = FlowRunFilter(name=FlowRunFilterName(like_=path.stem))

    def started():
        runs = [run for run in api.client.read_flow_runs(flow_run_filter=name) if run.auto_scheduled]
        past = [run for run in runs if run.expected_start_time < datetime.now(UTC)]
        return sorted(past, key=lambda run: run.expected_start_time)[number:]

    (run,) = until(started, 60)
    ended = api.wait(run.id)
    api.client.delete_deployment_schedule(deployment.id, made.id)
    return ended


@pytest.mark.full
def test_schedule_computes_only_what_is_new(workers, api, gpu_runs: Since, profile, model, tmp_path) -> None:
    """Catches a scheduled rerun that pays again for unchanged data, one that does not see grown data, and one that
    sends work to a GPU, or ends as any other does, where fewer rows are new than it asks for."""
    rows = [{"prompt": f"Reverse: {i:04d}", "response": f"{i:04d}"[::-1]} for i in range(120)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = profile(
        dataset={"path": str(data), "limit": 0, "shard_rows": 16},
        model={"path": str(model)},
        sft=None,
        generate={"max_new_tokens": 3},
        runtime=LIGHT,
    )
    first = scheduled(api, path, 0)
    assert first.state.name == "Completed", first.state.message
    shards = int(api.wait(gpu_runs.runs("generate")[0].id).state.message.split()[0])
    assert len(gpu_runs.runs()) == 2 and shards > 6
    again = scheduled(api, path, 1)
    assert again.state.name == "Cached" and len(gpu_runs.runs()) == 2, again.state.message
    data.write_text(data.read_text() + json.dumps({"prompt": "Reverse: more", "response": "erom"}) + "\n")
    grown = scheduled(api, path, 2)
    assert grown.state.name == "Completed", grown.state.message
    new = [run.name.partition("[")[0] for run in gpu_runs.runs()[2:]]
    assert sorted(new) == ["finetune", "generate"]
    message = gpu_runs.runs("generate")[1].state.message
    ran, cached = int(message.split()[0]), int(message.split()[3])
    assert ran <= 4 and cached >= shards - 4, message
    assert "The dataset since pooled-" in grown.state.message and "rows: 1 new" in grown.state.message
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"runtime": {**LIGHT, "min_new_rows": 50}}))
    data.write_text(data.read_text() + json.dumps({"prompt": "Reverse: last", "response": "tsal"}) + "\n")
    looked, steps = scheduled(api, path, 3), len(gpu_runs.runs())
    assert looked.state.name == "Not started" and steps == 4, looked.state.message
    assert looked.state.message.startswith("Not started: ") and " of 50 (runtime.min_new_rows) since pooled-" in (
        looked.state.message
    )
    assert {"not-started", "profile:pooled"} <= set(looked.tags)
    print(
        f"schedule: first {shards} shards; unchanged {again.state.message} in {again.total_run_time}; grown {message}"
    )


@in_full
@pytest.mark.full
def test_new_model_starts_the_next_iteration(workers, api: Api, profile) -> None:
    """Catches an event without the parameters of its run, a trigger that nobody can switch on, and a chain that does
    not end after the last iteration."""
    path = profile(
        iterations=2, runtime={"pools": dict.fromkeys(("sft", "generate", "score", "finetune", "evaluate"), "here")}
    )
    (automation,) = api.client.request(
        "POST", "/automations/filter", json={"automations": {"name": {"any_": ["spinloop: play the next iteration"]}}}
    ).json()
    assert automation["enabled"] is False, "the chain is shipped switched off"
    switch = f"/automations/{automation['id']}"
    api.client.request("PATCH", switch, json={"enabled": True})
    try:
        first = api.wait(api.start("iteration/iteration", file=str(path)))
        assert first.state.name == "Completed", first.state.message
        named = FlowRunFilter(name=FlowRunFilterName(like_=path.stem))

        def runs():
            return sorted(api.client.read_flow_runs(flow_run_filter=named), key=lambda run: str(run.created))

        until(lambda: len(runs()) > 1, 60)
        second = api.wait(runs()[1].id)
        assert second.state.name == "Completed", second.state.message
        assert second.created_by.type == "AUTOMATION"
        assert "θ_2" in (Path(second.state.message.rpartition(" ")[2]).with_name("report.md")).read_text()
        third = api.wait(api.start("iteration/iteration", file=str(path)))
        assert third.state.name == "Cached" and third.state.message.startswith("All 2 iterations")
        assert len(runs()) == 3, "the chain goes on after the last iteration"
    finally:
        api.client.request("PATCH", switch, json={"enabled": False})
