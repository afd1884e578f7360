"""`spinloop deploy`: work pools, deployments and automations on a Prefect server.

It can be repeated, and says what it changed. The files under deployments/ are the source of everything but what people
switch on the server: a pool's limit, whether a schedule, a deployment or an automation is on.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import yaml
from prefect import __version__
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.objects import WorkPool
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows.server import login
from flows.server.automations import automate, differing, notification_block, status_line
from flows.server.embedded import answers
from flows.server.errors import older, refused
from flows.server.settings import configured_server
from spin_core.config.profile import DEPLOYMENTS
from spin_core.errors import BadInput, SpinloopError
from spin_core.runtime import gpus
from spin_core.runtime.launch import python_path
from spin_core.store.opening import is_remote
from tasks.runner.pool_run import CPU_POOL, GPU_POOL

FILES = DEPLOYMENTS
CPU_LIMIT = 10
CPU_DEFAULTS: dict[str, Any] = {"gpus": 0, "device_requests": []}  # of the templates' variables; as written: a GPU pool


def deploy(store: str, kind: str, count: int | None, image: str, notify: str) -> Iterator[str]:
    """Bring the configured server up to date; a line for each thing. `count`: the GPU pool's limit, None to leave it
    as it is (a new pool: the GPUs of this machine)."""
    url = configured_server()
    if not url:
        raise BadInput("PREFECT_API_URL: not set; start `prefect server start` and name its API here.")
    if not answers(url):
        raise SpinloopError(
            f"PREFECT_API_URL {url}: no Prefect server answers there; start it, or correct the address."
        )
    if kind == "docker" and ":" in store and not is_remote(store):
        raise BadInput(f"--store {store}: docker mounts no folder that has a colon in its path; name another.")
    if count is not None and count < 1:
        raise BadInput(f"--gpus {count}: a pool needs room for one run at least.")
    try:
        with get_client(sync_client=True) as client:
            if server := older(client):
                raise SpinloopError(
                    f"PREFECT_API_URL {url}: the server is Prefect {server} and this client is {__version__}; upgrade "
                    "the server to at least the client's version."
                )
            block = notification_block(client, notify)
            there = {pool: _existing(client, pool, kind) for pool in (CPU_POOL, GPU_POOL)}
            yield _pool(client, CPU_POOL, there[CPU_POOL], kind, job_template(kind, CPU_POOL, store, image), None)
            yield _pool(client, GPU_POOL, there[GPU_POOL], kind, job_template(kind, GPU_POOL, store, image), count)
            yield from _deployments(client)
            yield from automate(client, FILES / "automations.yaml", block)
    except httpx.HTTPError as error:
        raise refused(error) or error from None


def job_template(kind: str, pool: str, store: str, image: str = "") -> dict[str, Any]:
    """The base job template of a pool: deployments/pools/<kind>.json with what is this machine's filled in."""
    template = json.loads((FILES / "pools" / f"{kind}.json").read_text(encoding="utf-8"))
    variables = template["variables"]["properties"]
    if pool == CPU_POOL:
        for name in CPU_DEFAULTS.keys() & variables.keys():
            variables[name]["default"] = CPU_DEFAULTS[name]
    if kind == "process" or is_remote(store):
        variables["env"]["default"]["SPINLOOP_STORE"] = store
    if kind == "process":
        # Not `python`: a worker that is started by its path has another one on its PATH, or none.
        variables["command"]["default"] = shlex.join([sys.executable, "-m", "prefect.engine"])
    elif image:
        variables["image"]["default"] = image
    if kind == "docker" and not is_remote(store):
        variables["volumes"]["default"] = [f"{store}:/store"]
    if kind == "kubernetes" and is_remote(store):  # nobody has to have a claim; what was fetched goes with the pod
        pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
        pod["volumes"] = [{"name": "store", "emptyDir": {}}, *(one for one in pod["volumes"] if one["name"] != "store")]
    return template


def _existing(client: SyncPrefectClient, name: str, kind: str) -> WorkPool | None:
    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        return None
    if pool.type != kind:
        raise BadInput(
            f"work pool {name}: it is there and of type {pool.type}, which Prefect cannot change; use --kind "
            f"{pool.type}, or delete it with `prefect work-pool delete {name}`."
        )
    return pool


def _pool(
    client: SyncPrefectClient, name: str, pool: WorkPool | None, kind: str, template: dict[str, Any], limit: int | None
) -> str:
    """Make or update a pool. `limit`: None to leave it as it is."""
    if pool is None:
        limit = limit or (CPU_LIMIT if name == CPU_POOL else len(gpus.visible()) or 1)
        client.create_work_pool(
            WorkPoolCreate(name=name, type=kind, base_job_template=template, concurrency_limit=limit)
        )
        return status_line("created", "pool", f"{name}: {kind}, {limit} runs at once")
    changes: dict[str, Any] = {}
    if pool.base_job_template != template:
        changes["base_job_template"] = template
    if limit and pool.concurrency_limit != limit:
        changes["concurrency_limit"] = limit
    if changes:
        client.update_work_pool(name, WorkPoolUpdate(**changes))
    fields = differing({key: getattr(pool, key) for key in changes}, changes)
    return status_line("changed" if changes else "same", "pool", name, fields)


def _deployments(client: SyncPrefectClient) -> Iterator[str]:
    wanted = _wanted()
    before = {name: _read(client, name) for name in wanted}
    _prefect_deploy()
    for name in wanted:
        old, new = before[name], _read(client, name)
        if new is None:
            raise SpinloopError(f"deployment {name}: Prefect did not create it; deployments/prefect.yaml names it.")
        if old is None:
            yield status_line("created", "deployment", name)
            continue
        _keep_switches(client, old, new)
        fields = differing(_facts(old), _facts(_read(client, name) or new))
        yield status_line("changed" if fields else "same", "deployment", name, fields)
    ours = DeploymentFilter(tags=DeploymentFilterTags(all_=["spinloop"]))
    for other in client.read_deployments(deployment_filter=ours):
        name = f"{client.read_flow(other.flow_id).name}/{other.name}"
        if name not in wanted:
            yield status_line("extra", "deployment", f"{name}: not in prefect.yaml; `prefect deployment delete {name}`")


def _wanted() -> list[str]:
    """`flow/deployment` of everything in prefect.yaml."""
    listed = yaml.safe_load((FILES / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return [f"{one['entrypoint'].rpartition('.')[2].replace('_', '-')}/{one['name']}" for one in listed]


def _read(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _prefect_deploy() -> None:
    """Prefect's own command, on the server that this process talks to."""
    file = str(FILES / "prefect.yaml")
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", file],
        cwd=FILES,
        # No login of a file, such as a `.env` there: this process may have been started elsewhere, for another server.
        env={
            **os.environ,
            "PYTHONPATH": python_path(),
            **login.NONE,
            **get_current_settings().to_environment_variables(exclude_unset=True),
        },
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        # The last line of a traceback or of Prefect's own message is the one that says why.
        why = ((done.stderr or done.stdout).strip().splitlines() or ["no reason given"])[-1]
        raise SpinloopError(
            f"deployments/prefect.yaml: `prefect deploy` refused it ({why.strip()}); fix it there, or the flow that "
            "it names."
        )


def _keep_switches(client: SyncPrefectClient, old: DeploymentResponse, new: DeploymentResponse) -> None:
    """Undo what Prefect's deploy does to people's own: it makes every schedule new, as the file has it, and drops those
    that were added on the server."""
    if old.paused and not new.paused:
        client.pause_deployment(old.id)
    switched = {schedule.slug: schedule.active for schedule in old.schedules if schedule.slug}
    for schedule in new.schedules:
        active = switched.get(schedule.slug or "", schedule.active)
        if active != schedule.active:
            client.update_deployment_schedule(new.id, schedule.id, active=active)
    own = [
        one for one in old.schedules if one.slug not in {schedule.slug for schedule in new.schedules if schedule.slug}
    ]
    if own:
        fields = {"schedule", "active", "parameters", "max_scheduled_runs", "slug"}
        client.create_deployment_schedules(
            new.id, [DeploymentScheduleCreate(**{name: getattr(one, name) for name in fields}) for one in own]
        )


def _facts(deployment: DeploymentResponse) -> dict[str, Any]:
    """What a person would call the deployment: no ids, no times."""
    facts = deployment.model_dump(
        mode="json",
        include={
            "description", "tags", "parameters", "parameter_openapi_schema", "entrypoint", "work_pool_name", "paused",
            "work_queue_name", "job_variables", "pull_steps", "concurrency_options", "enforce_parameter_schema",
        },
    )  # fmt: skip
    facts["parameter_openapi_schema"] = json.dumps(facts["parameter_openapi_schema"], sort_keys=True)  # one field
    limit = deployment.global_concurrency_limit
    facts["concurrency_limit"] = limit.limit if limit else None
    facts["schedules"] = sorted(
        json.dumps([one.slug, one.schedule.model_dump(mode="json"), one.active, one.parameters])
        for one in deployment.schedules
    )
    return facts
