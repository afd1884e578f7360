"""`spinloop deploy`: pools and deployments on a real server, and what people did there by hand."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessJobConfiguration

from flows.server.deploy import CPU_POOL, GPU_POOL, job_template

KINDS = ("process", "docker", "kubernetes")
SPIN, ZOMBIES = "spin/spin", "spinloop: zombie runs"
PLACEHOLDER = re.compile(r"\{\{ *(\w+) *\}\}")


@pytest.fixture
def client(deployed: str) -> Iterator[SyncPrefectClient]:
    """The deployed server's client."""
    with get_client(sync_client=True) as opened:
        yield opened


def lines(out: str) -> dict[str, str]:
    """`deploy`'s output: the thing → what became of it (`changed: its fields`)."""
    states_by_name = {}
    for line in out.splitlines():
        state, kind, rest = line.split(maxsplit=2)
        name, _, fields = rest.partition(": ") if kind != "automation" else (rest, "", "")
        states_by_name[name] = f"{state} {fields}".strip()
    return states_by_name


def test_deploy_again_changes_nothing_that_people_switched(deployed, store, spinloop, client):
    """Catches a deploy that makes things twice or calls them changed each time, and one that switches a schedule off,
    drops a schedule that a person added, wakes a paused deployment, or puts a pool's limit back."""
    spin = client.read_deployment_by_name(SPIN)
    client.update_deployment_schedule(spin.id, spin.schedules[0].id, active=True)
    own = DeploymentScheduleCreate(schedule=CronSchedule(cron="7 7 * * *"), active=True, parameters={"profile": "demo"})
    client.create_deployment_schedules(spin.id, [own])
    dataset = client.read_deployment_by_name("dataset/dataset")
    client.pause_deployment(dataset.id)
    client.update_work_pool(GPU_POOL, WorkPoolUpdate(concurrency_limit=7))
    zombies = client.read_automations_by_name(ZOMBIES)[0]
    client.pause_automation(zombies.id)
    try:
        code, out, err = spinloop("deploy", "--store", store)
        assert code == 0, err
        states = lines(out)
        assert set(states.values()) == {"same", "missing"}
        assert [name for name, state in states.items() if state == "missing"] == [
            next(n for n in states if "failure notice" in n)
        ]
        after = client.read_deployment_by_name(SPIN)
        assert {(s.slug, s.schedule.cron, s.active, s.parameters.get("profile")) for s in after.schedules} == {
            ("weekly", "0 3 * * 1", True, None),
            (None, "7 7 * * *", True, "demo"),
        }
        assert client.read_deployment_by_name("dataset/dataset").paused
        assert client.read_work_pool(GPU_POOL).concurrency_limit == 7
        assert not client.read_automations_by_name(ZOMBIES)[0].enabled
    finally:
        for schedule in client.read_deployment_by_name(SPIN).schedules:
            if schedule.slug:
                client.update_deployment_schedule(spin.id, schedule.id, active=False)
            else:
                client.delete_deployment_schedule(spin.id, schedule.id)
        client.resume_deployment(dataset.id)
        client.update_work_pool(GPU_POOL, WorkPoolUpdate(concurrency_limit=1))
        client.resume_automation(zombies.id)


def test_deploy_applies_and_names_what_the_files_have_otherwise(deployed, store, spinloop, client):
    """Catches a deploy that leaves an old template, deployment or automation on the server, or does not say which field
    it changed; one that does not see a deployment that the files no longer have."""
    template = job_template("process", CPU_POOL, "/another/store")
    client.update_work_pool(CPU_POOL, WorkPoolUpdate(base_job_template=template))
    spin = client.read_deployment_by_name(SPIN)
    client.update_deployment(spin.id, DeploymentUpdate(description="old", tags=["spinloop", "old"]))
    zombies = client.read_automations_by_name(ZOMBIES)[0]
    old = zombies.model_dump(exclude={"id", "owner_resource"}) | {"description": "old"}
    client.update_automation(zombies.id, AutomationCore(**old))
    client.create_deployment(spin.flow_id, "gone", tags=["spinloop"])
    try:
        code, out, err = spinloop("deploy", "--store", store, "--gpus", 3)
        assert code == 0, err
        states = lines(out)
        where = "base_job_template.variables.properties.env.default.SPINLOOP_STORE"
        assert states[CPU_POOL] == f"changed {where}"
        assert states[GPU_POOL] == "changed concurrency_limit"
        assert states[SPIN] == "changed description, tags"
        assert states["iteration/iteration"] == "same"
        assert states[f"{ZOMBIES}: description"] == "changed"
        assert states["spin/gone"].startswith("extra not in prefect.yaml")
        pool = client.read_work_pool(CPU_POOL)
        assert pool.base_job_template["variables"]["properties"]["env"]["default"]["SPINLOOP_STORE"] == str(store)
        assert client.read_work_pool(GPU_POOL).concurrency_limit == 3
        assert client.read_deployment_by_name(SPIN).tags == ["spinloop"]
        assert client.read_automations_by_name(ZOMBIES)[0].description != "old"
        assert client.read_deployment_by_name("spin/gone")
    finally:
        client.delete_deployment(client.read_deployment_by_name("spin/gone").id)
        client.update_work_pool(GPU_POOL, WorkPoolUpdate(concurrency_limit=1))


@pytest.mark.parametrize(
    "settings, message",
    [
        (["--kind", "docker"], "work pool spin-cpu: it is there and of type process"),
        (["--notify", "slack-webhook/nobody"], "--notify slack-webhook/nobody: the server has no such block"),
        (["--gpus", "0"], "--gpus 0: "),
        (["--kind", "docker", "--store", "/a:b"], "--store /a:b: docker mounts no folder that has a colon"),
    ],
)
def test_deploy_refuses_in_one_sentence_and_changes_nothing(deployed, store, spinloop, client, settings, message):
    """Catches a traceback, and a deploy that begins before it has looked at everything that it was given."""
    before = client.read_work_pool(CPU_POOL).updated
    code, out, err = spinloop("deploy", "--store", store, *settings)
    assert (code, out) == (2, "")
    assert err.startswith(f"spinloop: {message}") and err.count("\n") == 1
    assert client.read_work_pool(CPU_POOL).updated == before


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """An HTTP server that is healthy and gives everything else this answer; its API's address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            healthy = self.path.endswith("/health")
            self.send_response(200 if healthy else status)
            self.end_headers()
            self.wfile.write(b"true" if healthy else body)

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()


def test_deploy_without_a_server_that_will_do(spinloop, store):
    """Catches a traceback, or a sentence without the remedy, where the server is away, unset, wants a login or is
    older than the client."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: nobody}):
            code, _, err = spinloop("deploy", "--store", store)
            assert code == 1 and "no Prefect server answers there" in err and nobody in err
    with temporary_settings({PREFECT_API_URL: None}):
        code, _, err = spinloop("deploy", "--store", store)
        assert code == 2 and err.startswith("spinloop: PREFECT_API_URL: not set")
    for status, body, message in ((401, b"{}", "PREFECT_API_AUTH_STRING"), (200, b'"3.6.1"', "is Prefect 3.6.1 and")):
        with answering(status, body) as url, temporary_settings({PREFECT_API_URL: url}):
            code, out, err = spinloop("deploy", "--store", store)
            assert (code, out, err.count("\n")) == (1, "", 1) and message in err and url in err


@pytest.mark.parametrize("kind", KINDS)
def test_every_variable_of_a_template_is_used(kind):
    """Catches a variable without effect (Prefect ignores one that the job does not name), a name that is no variable,
    and a template that lost a variable of Prefect's own."""
    template = job_template(kind, GPU_POOL, "/store")
    variables = set(template["variables"]["properties"])
    assert set(PLACEHOLDER.findall(json.dumps(template["job_configuration"]))) == variables
    known = files("prefect.server") / "api/collections_data/views/aggregate-worker-metadata.json"
    workers = [w for package in json.loads(known.read_text()).values() for w in package.values()]
    theirs = next(w["default_base_job_configuration"] for w in workers if w["type"] == kind)
    ours_instead = {f"{what}_{how}" for what in ("cpu", "memory") for how in ("request", "limit")}
    assert set(theirs["variables"]["properties"]) - ours_instead <= variables


def rendered(template: dict, **values: object) -> dict:
    """The job of a template as Prefect's worker fills it in."""
    variables = template["variables"]["properties"]
    defaults = {name: field["default"] for name, field in variables.items() if field.get("default") is not None}
    return apply_values(template["job_configuration"], defaults | values)


def test_a_process_run_has_the_store_and_this_interpreter():
    """Catches a pool whose runs look for `python` on the worker's PATH, lose the store when a deployment adds a
    variable, or send too few heartbeats for the zombie automation."""
    template = job_template("process", GPU_POOL, "/the store")
    made = asyncio.run(
        ProcessJobConfiguration.from_template_and_values(template, {"env": {"CUDA_VISIBLE_DEVICES": "1"}}, client=None)
    )
    assert made.env == {
        "SPINLOOP_STORE": "/the store",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "CUDA_VISIBLE_DEVICES": "1",
    }
    assert shlex.split(made.command or "") == [sys.executable, "-m", "prefect.engine"]


def test_a_kubernetes_job_has_its_gpus_memory_and_store():
    """Catches a manifest in which a variable is not where Kubernetes reads it, and a CPU job that takes a GPU."""
    job = rendered(
        job_template("kubernetes", GPU_POOL, "/here", "registry/spinloop:1"),
        gpus=4, memory="64Gi", cpu="16", shared_memory="32Gi", node_selector={"gpu": "h100"}, store_claim="claim",
    )  # fmt: skip
    pod = job["job_manifest"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"] == {
        "limits": {"memory": "64Gi", "nvidia.com/gpu": 4},
        "requests": {"memory": "64Gi", "cpu": "16"},
    }
    assert container["image"] == "registry/spinloop:1"
    assert job["env"]["SPINLOOP_STORE"] == "/store"
    assert pod["nodeSelector"] == {"gpu": "h100"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/store"]["persistentVolumeClaim"] == {"claimName": "claim"}
    assert mounts["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "32Gi"}
    cpu = rendered(job_template("kubernetes", CPU_POOL, "/here"))["job_manifest"]["spec"]["template"]["spec"]
    assert cpu["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 0}, "requests": {}}


def test_a_docker_run_has_its_gpus_memory_and_store():
    """Catches a container without the GPUs, with docker's 64 MB of shared memory, or with a store of its own; and a CPU
    run that requests a GPU and is refused where there is none."""
    gpu = rendered(job_template("docker", GPU_POOL, "/here"), shm_size="32g")
    assert gpu["container_create_kwargs"] == {
        "device_requests": [{"count": -1, "capabilities": [["gpu"]]}],
        "shm_size": "32g",
        "init": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    assert gpu["volumes"] == ["/here:/store"] and gpu["env"]["SPINLOOP_STORE"] == "/store"
    assert rendered(job_template("docker", CPU_POOL, "/here"))["container_create_kwargs"]["device_requests"] == []
