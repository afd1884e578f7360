"""What Prefect's workers make of the pool templates: the Job, container or process of one flow run, without a server or
a cluster."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from flows.server.deploy import GPU_POOL, job_template

ROOT = Path(__file__).resolve().parents[2]
ID = UUID("12345678-1234-5678-1234-567812345678")


def prepared(
    configuration: Any, kind: str, pool: str = GPU_POOL, image: str = "", store: str = "/srv/spinloop", **values: Any
) -> Any:
    """The configuration of a run on `pool` with the job variables `values`, as the worker hands it on."""
    template = job_template(kind, pool, store, image)
    made = asyncio.run(configuration.from_template_and_values(template, values))
    made.prepare_for_flow_run(FlowRun(id=ID, flow_id=ID, name="finetune[iter 0] 3fa9c1"))
    return made


def job(pool: str = GPU_POOL, **values: Any) -> dict[str, Any]:
    """The Kubernetes Job of a run, as the worker posts it."""
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    return prepared(KubernetesWorkerJobConfiguration, "kubernetes", pool, "registry/spinloop:1", **values).job_manifest


def without_prefects_own(manifest: dict[str, Any]) -> dict[str, Any]:
    """Prefect refuses a manifest without these two in the pod's spec, where Kubernetes has no such fields and drops
    them: no schema takes them, and they are not ours."""
    made = deepcopy(manifest)
    pod = made["spec"]["template"]["spec"]
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    return made
