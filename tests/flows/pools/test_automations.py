"""The automations that `spinloop deploy` makes, at work on a real server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.events.schemas.automations import AutomationCore
from prefect.states import Completed, Failed, Pending, Running

from flows.server.deploy import GPU_POOL, job_template
from tests.flows.pools.conftest import ROOT, until

FILE = ROOT / "deployments" / "automations.yaml"
NOTICE, ZOMBIES, TIME_OUT = "spinloop: failure notice", "spinloop: zombie runs", "spinloop: stage time-out"


@pytest.fixture
def client(deployed: str) -> Iterator[SyncPrefectClient]:
    """The deployed server's client."""
    with get_client(sync_client=True) as opened:
        yield opened


def shipped(name: str) -> dict:
    """An automation of the file."""
    return next(one for one in yaml.safe_load(FILE.read_text()) if one["name"] == name)


@pytest.fixture
def in_ten_seconds(client: SyncPrefectClient) -> Iterator:
    """Makes a shipped automation that waits 10 s only, for runs with one more tag only; ends with the test."""
    made = []

    def make(name: str, tag: str) -> None:
        one = shipped(name)
        trigger = one["trigger"]
        trigger["match_related"] = [trigger["match_related"], {"prefect.resource.id": f"prefect.tag.{tag}"}]
        made.append(
            client.create_automation(AutomationCore.model_validate({**one, "trigger": {**trigger, "within": 10}}))
        )

    yield make
    for automation in made:
        client.delete_automation(automation)


BEATS = """
import time
from prefect import flow, tags

@flow
def beats(seconds):
    time.sleep(seconds)

with tags("spinloop", {tag!r}):
    beats({seconds})
"""


@pytest.mark.full
def test_a_run_whose_process_was_killed_becomes_crashed(client, in_ten_seconds, tmp_path: Path):
    """Catches an automation that no heartbeat starts (of other tags, of another event), one that cannot change the
    state, and one that takes a run that ended well for a dead one."""
    tag = f"zombie-{uuid.uuid4().hex[:6]}"
    in_ten_seconds(ZOMBIES, tag)

    def start(seconds: int) -> subprocess.Popen:
        # A file, because Prefect reads the source of a flow.
        script = tmp_path / f"beats-{seconds}.py"
        script.write_text(BEATS.format(tag=tag, seconds=seconds))
        return subprocess.Popen([sys.executable, script])

    def runs() -> dict[str, str]:
        flow_runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[tag])))
        return {run.parameters["seconds"]: run.state.name for run in flow_runs if run.state}

    ended, killed = start(1), start(600)
    try:
        assert ended.wait(timeout=60) == 0
        until(lambda: runs().get(600) == "Running", 60)
        time.sleep(3)  # its first heartbeat is sent
    finally:
        killed.kill()
        killed.wait()
    began = time.monotonic()
    until(lambda: runs()[600] == "Crashed", 60)
    assert time.monotonic() - began > 3
    assert runs()[1] == "Completed"


def test_a_run_may_miss_two_heartbeats():
    """Catches a zombie automation that is quicker than the pools' runs beat, and pools without heartbeats."""
    for kind in ("process", "docker", "kubernetes"):
        env = job_template(kind, GPU_POOL, "/store")["variables"]["properties"]["env"]["default"]
        assert shipped(ZOMBIES)["trigger"]["within"] > 2 * int(env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


@flow
def stage() -> None:
    """Never run: its runs are made in the states that they are to have."""


@pytest.mark.full
def test_a_stage_that_runs_too_long_is_cancelled(client, in_ten_seconds):
    """Catches a time-out that never comes, and one that cancels a stage which ended in time."""
    tag = f"slow-{uuid.uuid4().hex[:6]}"
    in_ten_seconds(TIME_OUT, tag)
    pairs: list[tuple] = []

    def seen() -> bool:
        """The server begins to watch for a new automation some time after it has answered: runs until it does."""
        pairs.append(tuple(client.create_flow_run(stage, tags=["stage", tag], state=Pending()) for _ in range(2)))
        for run in pairs[-1]:
            client.set_flow_run_state(run.id, Running())
        client.set_flow_run_state(pairs[-1][1].id, Completed())
        time.sleep(2)
        return any(client.read_flow_run(slow.id).state.name in ("Cancelling", "Cancelled") for slow, _ in pairs)

    until(seen, 60)
    assert {client.read_flow_run(quick.id).state.name for _, quick in pairs} == {"Completed"}


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[dict]]]:
    """A web hook on loopback: its address, and what was posted to it."""
    posted: list[dict] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", posted
    server.shutdown()


@pytest.mark.full
def test_a_failed_run_is_reported(client, spinloop, store, inbox):
    """Catches a notice that is not sent, that does not say which run failed and why, that is sent of a run that went
    well, and a later deploy without --notify that takes the block away."""
    url, posted = inbox
    fields = {"subject": "{{subject}}", "body": "{{body}}"}
    block = CustomWebhookNotificationBlock(name="spinloop", url=url, json_data=fields)
    saved = block.save("spinloop-test", overwrite=True)
    try:
        code, out, err = spinloop("deploy", "--store", store, "--notify", "custom-webhook/spinloop-test")
        assert code == 0 and f"created  automation  {NOTICE}" in out, err

        def noticed() -> bool:
            """The server begins to watch for a new automation some time after it has answered: runs until it does."""
            well, bad = (
                client.create_flow_run(stage, name=name, tags=["spinloop"]) for name in ("went well", "went wrong")
            )
            client.set_flow_run_state(well.id, Completed(), force=True)
            client.set_flow_run_state(bad.id, Failed(message="BadInput: no such dataset"), force=True)
            time.sleep(2)
            return bool(posted)

        until(noticed, 60)
        assert all("went wrong" in one["subject"] and "Failed" in one["subject"] for one in posted), posted
        assert posted[0]["body"].startswith("BadInput: no such dataset")
        code, out, err = spinloop("deploy", "--store", store)
        assert code == 0 and f"same     automation  {NOTICE}" in out, err
        assert client.read_automations_by_name(NOTICE)[0].actions[0].block_document_id == saved
    finally:
        for automation in client.read_automations_by_name(NOTICE):
            client.delete_automation(automation.id)
        client.delete_block_document(saved)
