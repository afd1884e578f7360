"""`spinloop doctor` with a server, pools and workers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.states import Crashed

from spin_core.config.runtime import Runtime
from spin_core.errors import SpinloopError
from spin_core.runtime.step import KeyedStep, Step
from spin_core.stages import sft
from spin_core.store.store import Store
from tasks.runner.pool_run import HOPELESS, PoolRun
from tests.flows.fixtures import Called
from tests.flows.pools.conftest import Worker, until


@pytest.fixture
def diagnosed(api, spinloop, store) -> Callable[[str], Called]:
    """What `spinloop doctor` says while the pool given has a worker."""

    def call(pool: str) -> Called:
        worker = Worker(pool, store)
        try:
            until(lambda: _workers(api, pool))
            return spinloop("doctor", "--store", store)
        finally:
            worker.stop()

    return call


@pytest.mark.full
def test_doctor_names_the_pool_that_has_no_worker(deployed, api, diagnosed) -> None:
    """Catches a pool that is called good while nobody takes its runs."""
    for pool in ("spin-cpu", "spin-gpu"):  # those that other tests have ended: the server forgets them after 90 s
        for worker in _workers(api, pool):
            api.client.request("DELETE", f"/work_pools/{pool}/workers/{worker}")
    code, out, err = diagnosed("spin-cpu")
    assert code == 1 and "spin-gpu: needed" in err and "make worker POOL=spin-gpu" in out


@pytest.mark.full
def test_doctor_checks_a_worker_of_each_pool(workers, spinloop, store, tmp_path) -> None:
    """Catches a pool whose worker is not checked, and a worker that computes into another store unseen."""
    Store(store).identity()
    code, out, err = spinloop("doctor", "--store", store)
    assert code == 0, out + err
    lines = {line[9:31].strip(): line for line in out.splitlines()}
    assert "Prefect 3." in lines["server"] and "1 live worker" in lines["spin-gpu"]
    for pool in workers:
        assert lines[f"{pool}: same store"].startswith("ok") and str(store) in lines[f"{pool}: store"]
    Store(tmp_path / "other").identity()
    code, out, err = spinloop("doctor", "--store", tmp_path / "other")
    assert code == 1 and "spin-gpu: same store" in err
    assert "is another than the one asked for" in out and "$SPINLOOP_STORE" in out


GONE = "'/old check out/.venv/bin/python' -m prefect.engine"


@pytest.fixture
def moved(api) -> Iterator[None]:
    """The GPU pool as a `spinloop deploy` of a checkout left it that has been moved since."""
    pool = api.client.read_work_pool("spin-gpu").base_job_template
    stale = copy.deepcopy(pool)
    stale["variables"]["properties"]["command"]["default"] = GONE
    api.client.update_work_pool("spin-gpu", WorkPoolUpdate(base_job_template=stale))
    yield
    api.client.update_work_pool("spin-gpu", WorkPoolUpdate(base_job_template=pool))


def test_run_names_the_command_of_a_moved_checkout_and_does_not_try_it_again(moved, api, tmp_path) -> None:
    """Catches a run that crashes three times with `unhandled errors in a TaskGroup`, which is all that Prefect says;
    and a crash of another kind that is taken for this one, and not tried again."""
    step = Step(sft, "θ_0", sft.Config(sft=sft.Sft(), seed=1))
    inputs = {"model": "a" * 64, "tokens": "b" * 64}
    run = PoolRun(api.client, Store(tmp_path), Runtime(), "spin-gpu", {"ab" * 32: KeyedStep(step, inputs)})

    def error(message: str) -> SpinloopError:
        state = Crashed(message=message)
        return run._why(FlowRun(flow_id=uuid4(), name="x", state=state, state_type=state.type))

    first = error("Flow run could not start: unhandled errors in a TaskGroup (1 sub-exception)")
    assert isinstance(first, HOPELESS) and GONE in str(first) and "`spinloop deploy`" in str(first)
    other = error("Flow run process exited with non-zero status code -9.")
    assert not isinstance(other, HOPELESS) and "-9" in str(other) and "deploy" not in str(other)


@pytest.mark.full
def test_doctor_names_the_command_of_a_moved_checkout(moved, diagnosed) -> None:
    """Catches a doctor that repeats Prefect's words; and Prefect, should it begin to say it in others."""
    code, out, _ = diagnosed("spin-gpu")
    (line,) = [line for line in out.splitlines() if GONE in line]
    assert code == 1 and line.startswith("missing  spin-gpu ") and "`spinloop deploy`" in line


def _workers(api, pool: str) -> list[str]:
    path = "/work_pools/{work_pool_name}/workers/filter"
    workers = api.client.request("POST", path, path_params={"work_pool_name": pool}, json={}).json()
    return [worker["name"] for worker in workers]
