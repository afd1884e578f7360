"""Settings of one iteration reach the stages they are for, and an alarm reaches people wherever they look."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

COLLAPSE = {"beta": 2.0, "length_normalised": True, "sft_weight": 0.1, "schedule_epochs": 10, "lr": 0.01}


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory) -> Path:
    """A private copy of the finished store."""
    return Path(shutil.copytree(finished[0], tmp_path_factory.mktemp("alarms") / "store", symlinks=True))


@pytest.fixture
def shown(place, spinloop, server, tiny) -> tuple[str, str, list[dict], Path]:
    """Standard output and error, ledger and folder of a run whose second iteration trains far too fast."""
    override = f"overrides={{1: {{finetune: {json.dumps(COLLAPSE)}}}}}"
    code, out, err = spinloop("run", tiny, "--store", place, "--set", override)
    assert code == 0, err
    folder = Path(out.strip().splitlines()[-1].removeprefix("Report: ")).parent
    return out, err, json.loads((folder / "steps.json").read_text()), folder


@pytest.mark.full
def test_override_reaches_finetune_and_evaluate_and_alarms_reach_people(shown, place) -> None:
    """Catches an evaluate with the profile's beta beside a finetune with the iteration's own, an override that leaks
    into other iterations; and alarms that stay in a file: not shown in training, not in Prefect's log, not below the
    table, not on the page."""
    out, err, steps, folder = shown
    ran = {(step["stage"], step["label"]): step for step in steps if step["state"] == "ran"}
    assert set(ran) == {("finetune", "iter 1"), ("evaluate", "θ_2"), ("gate", "iter 1"), ("report", "")}
    configs = {}
    for (stage, _), step in ran.items():
        record = place / "spinloop-store-v1" / "records" / stage / f"{step['key']}.json"
        configs[stage] = json.loads(record.read_text())["payload"]["config"]
    assert {name: configs["finetune"]["finetune"][name] for name in COLLAPSE} == COLLAPSE
    assert (configs["evaluate"]["beta"], configs["evaluate"]["length_normalised"]) == (2.0, True)

    alarms = ran["finetune", "iter 1"]["summary"]["alarms"]
    assert alarms
    first = alarms[0]["text"]
    assert f"note: finetune[iter 1]: {first}" in err.splitlines()
    table, below = out.split("\n\n", 1)
    assert "θ_2" in table
    for alarm in alarms:
        assert f"- θ_2: {alarm['text']}" in below
    assert f'<p class="note">θ_2: {first} The ' in (folder / "report.html").read_text()
    assert f"finetune[iter 1]: {first}" in warnings_of_the_server()


def warnings_of_the_server() -> list[str]:
    """What Prefect's log has at level WARNING of the latest flow run. Logs arrive a moment after they are written."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterLevel

    with get_client(sync_client=True) as client:
        latest = client.read_flow_runs(sort="START_TIME_DESC", limit=1)[0]
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[latest.id]), level=LogFilterLevel(ge_=30))
        for _ in range(300):
            if logs := client.read_logs(wanted):
                return [log.message for log in logs]
            time.sleep(0.1)
    return []
