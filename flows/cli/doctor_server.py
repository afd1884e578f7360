"""`spinloop doctor` where a server is configured: the server, its pools, and what a worker of each pool has."""

from __future__ import annotations

import json

import httpx
import prefect
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed

from flows.cli.doctor import Line, diagnose
from flows.server.embedded import answers
from flows.server.errors import older, refused
from flows.server.settings import configured_server
from flows.stages import OPTIONS, failed, store_folder
from spin_core.errors import BadInput, SpinloopError
from spin_core.store.opening import exists, open_store
from tasks.runner.pool_run import CPU_POOL, GPU_POOL, moved

POOLS = (CPU_POOL, GPU_POOL)
WAIT_SECONDS = 60  # a worker polls for work every second or so and starts a run in 3; vLLM's interpreter may take 20


@flow(**OPTIONS)
def doctor(store: str = "") -> State:
    """On a worker: what this machine has, and whether it sees the store that has the identity `store`."""
    try:
        lines = diagnose(store_folder())
        here = store_folder()
        if not store:
            lines.append(("-", "same store", "not compared: there is no store yet where doctor was asked"))
        elif open_store(here, runs=False).identity() == store:
            lines.append(("ok", "same store", here))
        else:
            text = f"{here} is another than the one asked for; show both the same ($SPINLOOP_STORE)"
            lines.append(("missing", "same store", text))
    except SpinloopError as error:
        return failed(error)
    return Completed(message=json.dumps(lines))


def diagnose_server(store: str) -> list[Line]:
    """Look at the configured server, its pools and their workers; on each pool with a worker one short flow run
    answers. `store`: this machine's, which the workers must see."""
    try:
        url = configured_server()
    except BadInput as error:
        return [("missing", "server", str(error))]
    if not url:
        return [("-", "server", "none configured: a run brings its own (docs/server.md)")]
    if not answers(url):
        return [("missing", "server", f"none answers at {url} (PREFECT_API_URL); `make server` starts one")]
    try:
        with get_client(sync_client=True) as client:
            lines = [_version(client, url)]
            for pool in POOLS:
                lines += _pool(client, pool, store)
            return lines + _redone(client)
    except httpx.HTTPError as error:
        return [("missing", "server", str(refused(error)))]


def _version(client: SyncPrefectClient, url: str) -> Line:
    if theirs := older(client):
        text = f"{url} is Prefect {theirs}, older than the {prefect.__version__} here; start it from this environment"
        return "missing", "server", text
    return "ok", "server", f"{url}, Prefect {client.api_version()}"


def _redone(client: SyncPrefectClient) -> list[Line]:
    """A `redo` that is stored on the server, so that runs which nobody starts by hand compute steps again."""
    try:
        deployment = client.read_deployment_by_name("spin/spin")
    except ObjectNotFound:
        return []
    scheduled = [(f"the schedule {one.slug or one.id}", one.parameters) for one in deployment.schedules if one.active]
    return [
        ("-", "spin/spin", f"each run by {who} computes {', '.join(steps)} again: `redo` is among its parameters")
        for who, parameters in [("its stored parameters", deployment.parameters), *scheduled]
        if (steps := parameters.get("redo"))
    ]


def _pool(client: SyncPrefectClient, pool: str, store: str) -> list[Line]:
    try:
        there = client.read_work_pool(pool)
    except ObjectNotFound:
        return [("missing", pool, "there is no such pool; `spinloop deploy` makes it")]
    workers = client.request(
        "POST", "/work_pools/{work_pool_name}/workers/filter", path_params={"work_pool_name": pool}, json={}
    ).json()
    online = [worker["name"] for worker in workers if worker.get("status") == "ONLINE"]
    limit = "no limit" if there.concurrency_limit is None else f"{there.concurrency_limit} runs at once"
    if not online:
        return [("missing", pool, f"no live worker; `make worker POOL={pool}` starts one")]
    return [("ok", pool, f"{there.type}, {limit}, {len(online)} live worker(s)"), *_query_worker(client, pool, store)]


def _query_worker(client: SyncPrefectClient, pool: str, store: str) -> list[Line]:
    try:
        identity = open_store(store, create=False, runs=False).identity() if exists(store) else ""
        run = run_deployment(
            f"doctor/{pool}", parameters={"store": identity}, timeout=WAIT_SECONDS, as_subflow=False, poll_interval=0.5
        )
    except ObjectNotFound:
        return [("missing", pool, f"there is no deployment doctor/{pool}; `spinloop deploy` makes it")]
    state = run.state  # type: ignore[union-attr]
    if state is None or not state.is_final():
        client.set_flow_run_state(run.id, Cancelled(message="Nobody waits for it."))  # type: ignore[union-attr]
        return [
            ("missing", pool, f"its worker did not answer in {WAIT_SECONDS} s; its limit may be reached, or it hangs")
        ]
    if not state.is_completed():
        message = state.message or ""
        return [("missing", pool, f"its worker could not look: {moved(client, pool, message) or message}")]
    return [
        (kind, f"{pool}: {what}", text) for kind, what, text in json.loads(state.message or "[]") if _worth(kind, what)
    ]


def _worth(kind: str, what: str) -> bool:
    """Of a worker's lines those that differ between machines, and whatever is wrong."""
    return kind == "missing" or what in ("python", "GPUs", "vllm", "store", "same store")
