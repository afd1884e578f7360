"""People's way to a run: the UI's form in a browser, down to the pages that show what came of it.

Screenshots go to $SPINLOOP_TEST_SCREENSHOTS, else to the test's folder. $SPINLOOP_TEST_FULL_DEMO=1 also runs the full
demo by *Quick run*.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import FlowRunSort

from tests.flows.pools.browser import VIEW, FirstUi, Ui, chromium
from tests.flows.pools.conftest import in_full, until

pytestmark = in_full

# The demo of tasks with numbers small enough for a test: section → field → what is typed. Four stages are in the
# run's own process, because each flow run of a stage costs 4 to 7 s more.
TYPED = {
    "dataset": {"limit": 60, "test_limit": 12},
    "sft": {"epochs": 1, "global_batch": 16},
    "generate": {"max_new_tokens": 8},
    "finetune": {"beta": 0.5, "schedule_epochs": 1, "global_batch": 16},
    "evaluate": {"max_new_tokens": 8},
    "runtime": {"workers": 1},
    "runtime.pools": {"sft": "here", "generate": "here", "score": "here", "evaluate": "here"},
}


@pytest.fixture
def ui(deployed: str, tmp_path: Path) -> Iterator[Ui]:
    pictures = Path(os.environ.get("SPINLOOP_TEST_SCREENSHOTS") or tmp_path)
    pictures.mkdir(parents=True, exist_ok=True)
    with chromium(deployed.removesuffix("/api"), pictures) as ui:
        yield ui


@pytest.fixture
def client(deployed: str) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.mark.timeout(1200)
def test_a_form_is_filled_in_and_its_run_completes(ui: Ui, client: SyncPrefectClient, workers):
    """Catches a form whose boxes do not appear or whose values do not arrive, a run that does not complete from it,
    and pages of it that are empty, or that the browser complains about, in either version of the UI."""
    deployment = client.read_deployment_by_name("spin/spin").id
    ui.custom_run(str(deployment))
    ui.picture("form")
    ui.choose("profile", "demo-tasks")
    ui.fill("name", "from-the-form")
    ui.fill("iterations", 1)
    for section, fields in TYPED.items():
        ui.switch(section, "change")
        for field, value in fields.items():
            ui.fill(f"{section}.{field}", value)
    ui.choose("evaluate.sampled", "false")
    ui.switch("control", "leave out")
    ui.fill("history", 3)
    ui.fill("history", "")  # a box that is emptied again sets nothing
    ui.picture("form-filled-in")
    ui.submit()

    run = the_run(client, deployment)
    expected = {**TYPED, "evaluate": {**TYPED["evaluate"], "sampled": "false"}}
    expected["runtime"] = {**expected["runtime"], "pools": expected.pop("runtime.pools")}
    settings = run.parameters["settings"]
    assert run.parameters["profile"] == "demo-tasks"
    assert {name: part for name, part in settings.items() if part} == {
        **expected, "name": "from-the-form", "iterations": 1
    }  # fmt: skip
    assert "control" in settings and settings["control"] is None
    completed(ui, client, run.id, seconds=900)
    look_at_artifacts(ui, client, run.id)
    browser = ui.page.context.browser
    assert browser is not None
    first = FirstUi(browser.new_page(viewport=VIEW), ui.address, ui.pictures)
    show_run(first, client.read_flow_run(run.id).name, run.id)
    look_at_artifacts(first, client, run.id)
    assert not ui.errors and not first.errors


@pytest.mark.skipif(not os.environ.get("SPINLOOP_TEST_FULL_DEMO"), reason="SPINLOOP_TEST_FULL_DEMO is not set")
@pytest.mark.timeout(1800)
def test_quick_run_runs_the_demo(ui: Ui, client: SyncPrefectClient, workers):
    """Catches a deployment that does not run as it is."""
    deployment = client.read_deployment_by_name("spin/spin").id
    before = {run.id for run in of_deployment(client, deployment)}
    ui.quick_run(str(deployment))
    until(lambda: {run.id for run in of_deployment(client, deployment)} - before, 60)
    run = the_run(client, deployment)
    assert not run.parameters  # the page sends none, and the flow's own defaults are the demo
    completed(ui, client, run.id, seconds=1500)
    assert client.read_flow_run(run.id).name == "demo, 2 iterations"
    look_at_artifacts(ui, client, run.id)
    assert not ui.errors


def of_deployment(client: SyncPrefectClient, deployment: UUID) -> list[FlowRun]:
    runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    return [run for run in runs if run.deployment_id == deployment]


def the_run(client: SyncPrefectClient, deployment: UUID) -> FlowRun:
    """The latest run of a deployment."""
    until(lambda: of_deployment(client, deployment), 60)
    return of_deployment(client, deployment)[0]


def completed(ui: Ui, client: SyncPrefectClient, run: UUID, seconds: float) -> None:
    """Wait for the run's end, and see it on its page."""
    ended = until(lambda: (now := client.read_flow_run(run)).state.is_final() and now, seconds)
    assert ended.state_name == "Completed", ended.state.message
    show_run(ui, ended.name, run)


def show_run(ui: Ui, name: str, run: UUID) -> None:
    """See a completed run on its page."""
    ui.open(f"runs/flow-run/{run}")
    ui.page.get_by_text("Completed").first.wait_for()
    ui.page.get_by_text(name).first.wait_for()
    ui.picture("run")


def look_at_artifacts(ui: Ui, client: SyncPrefectClient, run: UUID) -> None:
    """See every artifact of the run on its page, with the text that it should have."""
    pages = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run])))
    artifacts = {str(one.key).rpartition("-")[2]: one for one in pages if one.type == "markdown"}
    assert artifacts.keys() >= {"iterations", "pairs", "answers", "curves", "lineage"}
    for kind, artifact in artifacts.items():
        show_artifact(ui, kind, artifact)


def show_artifact(ui: Ui, kind: str, artifact: Artifact) -> None:
    ui.open(f"artifacts/artifact/{artifact.id}")
    ui.page.get_by_text(str(artifact.description).replace("`", "")).first.wait_for()  # the page draws Markdown
    if kind in ("iterations", "lineage"):
        ui.page.locator("table td").first.wait_for()
    if kind in ("curves", "lineage"):
        drawn = ui.page.locator("img[src^='data:image']").first
        drawn.wait_for()
        assert drawn.evaluate("picture => picture.decode().then(() => picture.naturalWidth)") > 0
    ui.picture(f"artifact-{kind}")
