"""Events for Prefect's automations: a dataset or a model is in the store that was not there before."""

from __future__ import annotations

from prefect.events import emit_event

from spin_core.config.profile import Config
from spin_core.config.stage_table import EVENTS
from spin_core.runtime.step import Step
from spin_core.store.store import Record
from tasks.runner.ledger import run_name


def emit(config: Config, step: Step, record: Record, cached: bool, origin: dict, follow: str) -> None:
    """Emit `spinloop.dataset.created` or `spinloop.model.created` of a new artifact. Also of a model that was there
    (a run may have been killed before it emitted the event), where another run is to go on from it: starting that
    twice is harmless.

    Its resource is `spinloop.<kind>.<digest>`. The label `spinloop.next` is `iteration` where this run ends here and
    another one is to go on (deployments/automations.yaml starts it, from the payload). `origin` and `follow` are those
    of the `Run`.
    """
    kind = EVENTS.get(step.stage)
    if kind is None:
        return
    last = kind == "dataset" or step.place.iteration == config.iterations - 1
    followed = last and follow == kind
    if cached and not (followed and kind == "model"):
        return
    emit_event(
        event=f"spinloop.{kind}.created",
        resource={
            "prefect.resource.id": f"spinloop.{kind}.{record.digest}",
            "prefect.resource.name": f"{config.name} {step.title}",
            "spinloop.next": "iteration" if followed else "none",
        },
        payload={"run": run_name(config), "step": step.title, "digest": record.digest, **origin},
    )
