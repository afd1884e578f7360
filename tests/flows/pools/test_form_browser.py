"""The run form in both UIs of Prefect: a person who knows no JSON changes what is in a profile.

With $SPINLOOP_TEST_SCREENSHOTS, a folder, the form is there as pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from tests.flows.pools.browser import CREATE, FirstUi, Ui, chromium, with_browser
from tests.flows.pools.conftest import until

pytestmark = with_browser


@pytest.fixture(params=[FirstUi, Ui], ids=["v1", "v2"])
def ui(request: pytest.FixtureRequest, deployed: str) -> Iterator[Ui]:
    folder = os.environ.get("SPINLOOP_TEST_SCREENSHOTS")
    pictures = Path(folder) if folder else None
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    with chromium(deployed.removesuffix("/api"), pictures, request.param) as ui:
        yield ui


def test_a_profile_is_changed_in_plain_boxes(ui: Ui, deployed: str) -> None:
    """Catches a section that one of the UIs shows as a box of JSON, or without the help of its fields; a value that
    does not arrive, or one that arrives unasked; a wrong one that is taken, or refused without its field's name."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("spin/spin").id
        ui.custom_run(str(deployment))
        ui.picture("form")
        assert ui.page.get_by_text("SPIN iterations. 0 to 100. In the profiles:").count() == 1
        ui.fill("iterations", 1)
        assert not ui.page.get_by_text("λ of the paper: weight of the log-ratio").count()  # sections are shut
        for section in ("finetune", "finetune.lora", "evaluate"):
            ui.switch(section, "change")
        assert ui.page.get_by_text("λ of the paper: weight of the log-ratio").count() == 1
        ui.fill("finetune.beta", -1)
        ui.fill("finetune.lr", "5e-7")
        ui.fill("finetune.lora.rank", 4)
        ui.choose("finetune.loss", "hinge")
        ui.choose("evaluate.sampled", "false")
        ui.switch("control", "leave out")
        with ui.page.expect_response(CREATE) as answer:
            ui.press("Submit")
        assert answer.value.status == 409
        ui.refuses("settings.finetune.beta", "-1 is less than or equal to the minimum of 0")
        ui.picture("form-refuses")
        assert not runs_of(client, deployment)
        ui.fill("finetune.beta", 0.5)
        ui.picture("form-filled-in")
        ui.submit()
        run = until(lambda: runs_of(client, deployment), 30)[0]
        client.delete_flow_run(run.id)
    assert run.parameters["settings"] == {
        "iterations": 1,
        "finetune": {"beta": 0.5, "lr": 5e-7, "loss": "hinge", "lora": {"rank": 4}},
        "evaluate": {"sampled": "false"},
        "control": None,
    }


def runs_of(client: SyncPrefectClient, deployment: object) -> list[FlowRun]:
    runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    return [run for run in runs if run.deployment_id == deployment]
