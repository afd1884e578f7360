"""A run that waits for a person before its next iteration."""

from __future__ import annotations

import json

import pytest

from spin_core.store.store import Store
from tests.flows.pools.conftest import in_full, until

pytestmark = pytest.mark.timeout(600)
ODD = [
    {"decision": "maybe"}, {"decision": ["go on"]}, {"decision": None}, {"decision": "GO ON "},
    {"decision": "x" * 100_000}, {"decison": "stop here"}, {"decision": "go on", "extra": {"a": 1}},
]  # fmt: skip
HERE = dict.fromkeys(("sft", "generate", "score", "finetune", "evaluate"), "here")


@pytest.mark.parametrize("decision", ["go on", pytest.param("stop here", marks=in_full)])
@pytest.mark.full
def test_run_waits_for_a_person_with_its_worker_free(decision, workers, api, profile, store) -> None:
    """Catches a gate that keeps the worker busy, a resumed run that computes or pauses again, one that goes on
    after `stop here`, and one that takes an answer that the form does not have."""
    path = profile(iterations=2, runtime={"approve": True, "pools": HERE})
    run = api.start("spin/spin", file=str(path))
    until(lambda: api.client.read_flow_run(run).state.name == "Suspended", 200)
    until(lambda: not workers["spin-cpu"].processes(), 20)

    of_run = {"filter": {"resource": {"id": [f"prefect.flow-run.{run}"]}}}

    def newest() -> str:
        events = api.client.request("POST", "/events/filter", json=of_run).json()["events"]
        return max(events, key=lambda event: event["occurred"])["event"]

    # Else the zombie automation hears a heartbeat, and then nothing. (The server writes events in batches, every 5 s.)
    until(lambda: newest() == "prefect.flow-run.waiting", 20)
    held = {record.key for record in Store(store).records()}
    (shown,) = [page for page in api.client.request("POST", "/artifacts/filter", json={}).json()
                if page["flow_run_id"] == str(run) and page["key"].endswith("-iterations")]  # fmt: skip
    assert "θ\\_1" in shown["data"] and "θ\\_2" not in shown["data"]
    for odd in ODD:
        answer = api.client.resume_flow_run(run, run_input=odd)
        assert "Validation failed" in answer.details.reason
        assert api.client.read_flow_run(run).state.name == "Suspended", f"resumed with {odd}"
    # Resumed without a word (`prefect flow-run resume`) it goes on.
    api.client.resume_flow_run(run, run_input={} if decision == "go on" else {"decision": decision})
    ended = api.wait(run)
    steps = json.loads((Store(store).root / "latest" / "steps.json").read_text())
    again = [step["stage"] for step in steps if step["state"] == "ran" and step["key"] in held]
    assert not again, f"computed again after the approval: {again}"
    ran = {step["label"] for step in steps if step["stage"] == "finetune"}
    assert ran == ({"iter 0", "iter 1"} if decision == "go on" else {"iter 0"})
    assert ended.state.is_completed(), ended.state.message
