"""`spinloop doctor` with a server, pools and workers."""

from __future__ import annotations

import pytest

from spin_core.store.store import Store
from tests.flows.pools.conftest import Worker, until


@pytest.mark.full
def test_doctor_names_the_pool_that_has_no_worker(deployed, api, spinloop, store) -> None:
    """Catches a pool that is called good while nobody takes its runs."""
    for pool in ("spin-cpu", "spin-gpu"):  # those that other tests have ended: the server forgets them after 90 s
        for worker in _workers(api, pool):
            api.client.request("DELETE", f"/work_pools/{pool}/workers/{worker}")
    worker = Worker("spin-cpu", store)
    try:
        until(lambda: _workers(api, "spin-cpu"))
        code, out, err = spinloop("doctor", "--store", store)
    finally:
        worker.stop()
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


def _workers(api, pool: str) -> list[str]:
    path = "/work_pools/{work_pool_name}/workers/filter"
    workers = api.client.request("POST", path, path_params={"work_pool_name": pool}, json={}).json()
    return [worker["name"] for worker in workers]
