"""The full server set-up at once: Postgres, a server behind a password, `spinloop deploy`, a worker for each pool, and
an iteration that is started from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.pools.conftest import in_full, until
from tests.flows.pools.postgres import binaries, postgres
from tests.flows.pools.shipped import Server, checkout, end, free_port, make, output_of, start

PROGRAMS = binaries()
MISSING = "Postgres (apt install postgresql) is not on this machine"


@pytest.mark.timeout(600)
@in_full
def test_an_iteration_on_postgres(tmp_path: Path, profile) -> None:
    """Catches a server that keeps its runs elsewhere than in the Postgres of the one variable, a step that needs more
    than the settings in `.env` (deploy, worker, a stage's process, the run's own client), and a password that ends up
    in the database."""
    assert PROGRAMS, MISSING
    folder, store = checkout(tmp_path / "checkout"), tmp_path / "store"
    path = profile()
    with postgres(PROGRAMS) as database:
        line = f"PREFECT_SERVER_DATABASE_CONNECTION_URL={database.url}\n"
        server = Server(folder, make("server"), free_port(), line)
        workers = []
        try:
            assert "iteration/iteration" in output_of(folder, "flows.cli", "deploy", "--store", str(store))
            for pool in ("spin-cpu", "spin-gpu"):
                log = (folder / f"worker-{pool}").open("wb")
                workers.append(start(make("worker", f"POOL={pool}"), folder, log))
            words = ["--watch", "--watch-interval", "1", "--param", f"file={path}", "--param", "iteration=0"]
            output_of(folder, "prefect", "deployment", "run", "iteration/iteration", *words)
            ours = "from flow_run where name like 'tiny%' order by created"
            (first,) = database.query(f"select deployment_id {ours}").splitlines()
            server.post(f"/deployments/{first}/create_flow_run", {"parameters": {"file": str(path), "iteration": 0}})
            until(lambda: database.query(f"select state_name {ours}").splitlines() == ["Completed", "Cached"])
            states = "select flow.name, state_name from flow_run join flow on flow.id = flow_run.flow_id"
            ran = database.query(f"{states} where flow.name <> 'iteration' order by flow.name").splitlines()
            stages = ["evaluate", "evaluate", "finetune", "generate", "score", "sft"]  # evaluate: θ_0 and θ_1
            assert ran == [f"{stage}|Completed" for stage in stages]
            assert int(database.query("select count(*) from task_run")) > 5
            assert not list(folder.glob("prefect/*.db"))
            rows = database.everything()
            assert str(path) in rows and server.login.removeprefix("admin:") not in rows
        finally:
            for process in workers:
                end(process)
            server.stop()
