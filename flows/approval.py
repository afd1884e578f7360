"""A person's word between two iterations (`runtime.approve`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from pydantic import Field

from tasks import artifacts
from tasks.report import report

if TYPE_CHECKING:
    from flows.spin import Table
    from tasks.run import Run

WAIT_SECONDS = 30 * 24 * 3600


class Decision(RunInput):
    """The form that the UI shows at a suspended run."""

    decision: Literal["go on", "stop here"] = Field("go on", description="Play the next iteration, or end with these.")


def approved(run: Run, t: int, table: Table) -> bool:
    """Whether iteration `t` may begin. Suspends the run until a person has said so: its process ends and its worker is
    free; when it is resumed the flow starts anew, with everything before this line Cached."""
    if not run.config.runtime.approve or run.planning:
        return True
    so_far = report(run, table.lines, table.inputs, label=f"before iter {t}").result()
    run.settle()
    told = artifacts.so_far(run, run.store.tree(so_far.digest), t)
    answer = suspend_flow_run(
        wait_for_input=Decision.with_initial_data(description=told), key=f"before-iteration-{t}", timeout=WAIT_SECONDS
    )
    return answer.decision == "go on"
