"""A person's word between two iterations (`runtime.approve`)."""

from __future__ import annotations

import atexit
from typing import Literal

from prefect.client.orchestration import get_client
from prefect.events import Event, Resource
from prefect.exceptions import Pause
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from tasks.report import Table, report
from tasks.runner import artifacts
from tasks.runner.run import Run

WAIT_SECONDS = 30 * 24 * 3600


class Decision(RunInput):
    """The form that the UI shows at a suspended run."""

    decision: Literal["go on", "stop here"] = Field("go on", description="Run the next iteration, or end with these.")


def approved(run: Run, t: int, table: Table) -> bool:
    """Whether iteration `t` may begin. Suspends the run until a person has decided: its process ends and its worker is
    free; when it is resumed the flow starts anew, with everything before this line Cached."""
    if not run.config.runtime.approve or run.planning:
        return True
    so_far = report(run, table, label=f"before iter {t}").result()
    run.settle()
    if run.failures:
        raise run.failures[0]
    text = artifacts.so_far(run, run.store.tree(so_far.digest), t)
    form = Decision.with_initial_data(description=text)
    try:
        answer = suspend_flow_run(wait_for_input=form, key=f"before-iteration-{t}", timeout=WAIT_SECONDS)
    except Pause:
        atexit.register(_last_word, flow_run.id)
        raise
    return answer.decision == "go on"


def _last_word(run: str) -> None:
    """An event after the last heartbeat. One heartbeat in thirty comes between the suspension and the end of the
    process, and the automation against zombies would take the silence after it for a death."""
    last = Event(
        event="prefect.flow-run.waiting", resource=Resource({"prefect.resource.id": f"prefect.flow-run.{run}"})
    )
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[last.model_dump(mode="json")])
