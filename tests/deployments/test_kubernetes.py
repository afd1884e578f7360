"""deployments/kubernetes: the manifests that a person applies, against Kubernetes' schemas and against each other."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deployments.rendered import ROOT, job

kubernetes_validate = pytest.importorskip("kubernetes_validate")
FOLDER = ROOT / "deployments/kubernetes"
LISTED = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
VERSIONS = ("1.31", kubernetes_validate.latest_version())


def documents() -> list[dict]:
    """Every object of the files that kustomization.yaml lists."""
    objects = []
    for name in LISTED["resources"]:
        objects += [one for one in yaml.safe_load_all((FOLDER / name).read_text()) if one]
    return objects


OBJECTS = documents()
PODS = {
    one["metadata"]["name"]: one["spec"]["template"] for one in OBJECTS if one["kind"] in ("Deployment", "StatefulSet")
}


@pytest.mark.parametrize("version", VERSIONS)
def test_objects_are_what_kubernetes_has_schemas_for(version):
    """Catches a field of another kind or version, a misspelt one, a number where text must be."""
    for one in OBJECTS:
        kubernetes_validate.validate(one, version, strict=True)


def test_a_misspelt_field_is_seen():
    """Catches a validation that takes everything."""
    made = json.loads(json.dumps(next(one for one in OBJECTS if one["kind"] == "StatefulSet")))
    made["spec"]["template"]["spec"]["container"] = made["spec"]["template"]["spec"].pop("containers")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(made, VERSIONS[0], strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on this machine")
def test_kubectl_makes_one_set_of_them(tmp_path: Path):
    """Catches a file that kustomization.yaml does not list, and an image that it does not rename."""
    assert {path.name for path in FOLDER.iterdir()} == {*LISTED["resources"], "kustomization.yaml"}
    done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = list(yaml.safe_load_all(done.stdout))
    assert len(made) == len(OBJECTS)
    assert all(one["metadata"].get("namespace") == "spinloop" for one in made if one["kind"] != "Namespace")
    shutil.copytree(FOLDER, tmp_path / "mine")
    text = (FOLDER / "kustomization.yaml").read_text().replace("newName: spinloop,", "newName: registry/me/spinloop,")
    (tmp_path / "mine/kustomization.yaml").write_text(text)
    done = subprocess.run(["kubectl", "kustomize", tmp_path / "mine"], capture_output=True, text=True, check=True)
    assert done.stdout.count("image: registry/me/spinloop:0.1.0") == 3 and "image: spinloop" not in done.stdout


def test_services_find_their_pods_and_policies_name_who_is_there():
    """Catches a server that nobody reaches: a selector that no pod has, a port that no container opens, a policy that
    lets in a component that does not exist or keeps out one that must come in."""
    labels = {name: pod["metadata"]["labels"] for name, pod in PODS.items()}
    labels["run"] = job()["spec"]["template"]["metadata"]["labels"]
    ports = {
        port["containerPort"]
        for pod in PODS.values()
        for one in pod["spec"]["containers"]
        for port in one.get("ports", [])
    }
    for one in OBJECTS:
        if one["kind"] == "Service":
            assert any(one["spec"]["selector"].items() <= has.items() for has in labels.values())
            assert {port["port"] for port in one["spec"].get("ports", [])} <= ports
        if one["kind"] in ("Deployment", "StatefulSet"):
            assert (
                one["spec"]["selector"]["matchLabels"].items() <= one["spec"]["template"]["metadata"]["labels"].items()
            )
    component = "app.kubernetes.io/component"
    known = {has[component] for has in labels.values()}
    policies = {one["metadata"]["name"]: one["spec"] for one in OBJECTS if one["kind"] == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    let_in = {}
    for name, spec in policies.items():
        if name == "nobody":
            continue
        (rule,) = spec["ingress"]
        (source,) = rule["from"]
        given = source["podSelector"]
        let_in[spec["podSelector"]["matchLabels"][component]] = (
            {given["matchLabels"][component]} if "matchLabels" in given else {*given["matchExpressions"][0]["values"]}
        )
    assert let_in == {
        "server": {"worker", "spinloop-run"},
        "postgres": {"server"},
        "spinloop-run": {"spinloop-run"},
    }
    assert {*let_in, *(name for names in let_in.values() for name in names)} <= known


def test_pods_keep_to_the_namespaces_own_rule():
    """Catches a pod that the namespace refuses (restricted), a root in a container, and a token of the cluster in one
    that computes."""
    (space,) = (one for one in OBJECTS if one["kind"] == "Namespace")
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in PODS.items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is name.startswith("worker")
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]
            assert "latest" not in container["image"] and ":" in container["image"]


def test_secret_has_what_the_pods_read_from_it(tmp_path: Path):
    """Catches a pod that never starts, because server-env.sh's .env, of which the secret is made, lacks a key; and a
    password that stands in a file."""
    (tmp_path / "deployments").mkdir()
    shutil.copy(ROOT / "deployments/server-env.sh", tmp_path / "deployments")
    subprocess.run(["bash", tmp_path / "deployments/server-env.sh"], check=True, capture_output=True)
    lines = [line for line in (tmp_path / ".env").read_text().splitlines() if line and line[0] != "#"]
    made = dict(line.split("=", 1) for line in lines)
    for pod in PODS.values():
        for entry in pod["spec"]["containers"][0]["env"]:
            if "valueFrom" in entry:
                reference = entry["valueFrom"]["secretKeyRef"]
                assert reference["name"] == "spinloop" and made[reference["key"]]
            elif any(word in entry["name"] for word in ("PASSWORD", "AUTH_STRING")):
                assert entry["value"] in ("spinloop", "PREFECT_API_AUTH_STRING")
    names = [entry["name"] for entry in PODS["server"]["spec"]["containers"][0]["env"]]
    assert names.index("POSTGRES_PASSWORD") < names.index("PREFECT_SERVER_DATABASE_CONNECTION_URL")


def test_pods_start_commands_that_are_there():
    """Catches a worker without a pool, a pool without a worker, and a claim that no job names."""
    args = [pod["spec"]["containers"][0].get("args", []) for pod in PODS.values()]
    pools = sorted(one[one.index("--pool") + 1] for one in args if "--pool" in one)
    assert pools == ["spin-cpu", "spin-gpu"]
    (claim,) = (one for one in OBJECTS if one["kind"] == "PersistentVolumeClaim")
    volumes = job()["spec"]["template"]["spec"]["volumes"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in volumes
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert job()["metadata"]["namespace"] == LISTED["namespace"]
