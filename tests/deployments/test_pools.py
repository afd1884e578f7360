"""The pool templates as Prefect renders them, against Kubernetes' and docker's own ideas of what they take."""

from __future__ import annotations

import os
import subprocess

import pytest
import yaml

from flows.server.deploy import CPU_POOL, GPU_POOL
from tests.deployments.rendered import ROOT, job, prepared, without_prefects_own

kubernetes_validate = pytest.importorskip("kubernetes_validate")
pytest.importorskip("prefect_kubernetes")
OLDEST = "1.31"  # the first that takes successPolicy without a switch


@pytest.mark.parametrize(
    "values",
    [
        {},
        {
            "nodes": 4,
            "gpus": 8,
            "memory": "900Gi",
            "cpu": "96",
            "shared_memory": "64Gi",
            "store_claim": "claim",
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "service_account_name": "runs",
            "node_selector": {"gpu": "h100"},
            "labels": {"team": "a b"},
        },
    ],
)
def test_job_is_what_kubernetes_has_a_schema_for(values):
    """Catches a field in the wrong place or of the wrong type, which the API server drops or refuses on the day of the
    first run."""
    for pool in (GPU_POOL, CPU_POOL):
        manifest = without_prefects_own(job(pool, **values))
        for version in {OLDEST, kubernetes_validate.latest_version()}:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_job_of_several_nodes_is_one_indexed_job():
    """Catches pods that are copies of one run, a pod that is left over when another died, pods of two jobs that meet,
    and a pod 0 that listens at another address than its own."""
    spec = job(nodes=4, gpus=8)["spec"]
    pod = spec["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (4, 4, "Indexed")
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")  # one dead pod ends all; Prefect tries again
    assert spec["successPolicy"]["rules"] == [{"succeededIndexes": "0", "succeededCount": 1}]
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    names = [entry["name"] for entry in container["env"]]
    assert len(set(names)) == len(names)
    env = {entry["name"]: entry for entry in container["env"]}
    paths = [env[name]["valueFrom"]["fieldRef"]["fieldPath"] for name in ("SPINLOOP_MEETING", "SPINLOOP_LEADER")]
    assert paths == ["metadata.labels['batch.kubernetes.io/job-name']", "status.podIP"]
    assert env["SPINLOOP_STORE"]["value"] == "/store" and env["PREFECT__FLOW_RUN_ID"]["value"]


@pytest.mark.parametrize(
    ("nodes", "index", "says"),
    [(1, None, "prefect "), (1, "0", "prefect "), (3, "0", "prefect crash"), (3, "2", "join crash")],
)
def test_pod_0_runs_the_flow_and_the_others_join(tmp_path, nodes, index, says):
    """Catches pods that all execute the flow run, and a flow run that is started again without end: of several nodes a
    killed one is crashed, for the run that started it to try twice, and not put back into the queue."""
    made = job(nodes=nodes)["spec"]["template"]["spec"]["containers"][0]
    for name, word in (("prefect", "prefect"), ("spinloop", "$1"), ("python", "prefect")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{word} $PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"\n')
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.defpath}"} | ({"JOB_COMPLETION_INDEX": index} if index else {})
    done = subprocess.run(made["command"] + made["args"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == f"{says}\n", done.stderr


def test_pod_of_a_run_has_no_rights_it_does_not_need():
    """Catches a run as root, one that can change its image or talk to the cluster, and one that the namespace's own
    rule (restricted) refuses; and a read-only image in which it finds no place to write."""
    pod = job()["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 1000
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    container = pod["containers"][0]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert {path for path, volume in places.items() if "emptyDir" in volume} == {"/dev/shm", "/tmp", "/home/spinloop"}
    assert "useradd --create-home --uid 1000 spinloop" in (ROOT / "deployments/Dockerfile").read_text()


def test_job_with_an_object_store_needs_no_claim():
    """Catches pods that wait for a volume that nobody made, where the store is in a bucket."""
    manifest = without_prefects_own(job(store="s3://bucket/spinloop"))
    kubernetes_validate.validate(manifest, OLDEST, strict=True)
    pod = manifest["spec"]["template"]["spec"]
    assert {"name": "store", "emptyDir": {}} in pod["volumes"]
    assert not any("persistentVolumeClaim" in volume for volume in pod["volumes"])
    assert {"name": "SPINLOOP_STORE", "value": "s3://bucket/spinloop"} in pod["containers"][0]["env"]


def test_password_reaches_a_job_by_reference():
    """Catches the server's password in a Job's manifest, where everyone reads it who may list jobs."""
    documents = list(yaml.safe_load_all((ROOT / "deployments/kubernetes/workers.yaml").read_text()))
    pods = [one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Deployment"]
    from prefect_kubernetes.settings import KubernetesSettings

    assert len(pods) == 2
    for pod in pods:
        env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
        given = {name: value for name, value in env.items() if value and name.startswith("PREFECT_INTEGRATIONS")}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in given.items():
                patch.setenv(name, value)
            settings = KubernetesSettings()
        assert settings.worker.api_auth_string_secret_name == "spinloop"
        assert settings.worker.api_auth_string_secret_key == "PREFECT_API_AUTH_STRING"
        assert settings.observer.namespaces == {"spinloop-runs"}
        assert env["PREFECT_API_URL"] == "http://server.spinloop:4200/api"  # a job has it too, in its own namespace


def test_container_is_what_docker_takes():
    """Catches an option that docker's client does not know, with which each run on the pool fails."""
    pytest.importorskip("prefect_docker")
    from docker.models.containers import RUN_CREATE_KWARGS, RUN_HOST_CONFIG_KWARGS, _create_container_args
    from prefect_docker.worker import DockerWorkerJobConfiguration

    made = prepared(DockerWorkerJobConfiguration, "docker", image="registry/spinloop:1", shm_size="32g")
    options = made.container_create_kwargs
    assert set(options) <= {*RUN_CREATE_KWARGS, *RUN_HOST_CONFIG_KWARGS}
    config = _create_container_args({**options, "image": made.image, "version": "1.50", "volumes": made.volumes})
    host = config["host_config"]
    assert host["ShmSize"] == 32 << 30 and host["CapDrop"] == ["ALL"] and host["Init"] is True
    assert host["SecurityOpt"] == ["no-new-privileges:true"] and host["Binds"] == ["/srv/spinloop:/store"]
    assert made.env["SPINLOOP_STORE"] == "/store"


def test_process_is_what_prefect_takes():
    """Catches a template of a process pool that its worker refuses."""
    from prefect.workers.process import ProcessJobConfiguration

    made = prepared(ProcessJobConfiguration, "process")
    assert made.env["SPINLOOP_STORE"] == "/srv/spinloop" and made.command.endswith("prefect.engine")


def test_stage_of_several_nodes_requests_them():
    """Catches a run whose profile has `compute.nodes: 4` and whose Job has one pod, which then waits for three."""
    from spin_core.config.runtime import Compute, Runtime
    from tasks.runner.pool_run import machines

    def requested(stage: str, **compute) -> dict:
        return machines(stage, Runtime(compute=Compute(**compute)))

    assert requested("finetune", nodes=4, processes=8, sharding="zero3") == {"nodes": 4, "gpus": 8}
    assert requested("finetune", processes=8) == {} and requested("harness", nodes=4) == {}
    spec = job(**requested("finetune", nodes=2, processes=3))["spec"]
    assert spec["completions"] == 2
    assert spec["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 3
