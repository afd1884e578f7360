"""deployments/kubernetes: the manifests that a person applies, against Kubernetes' schemas and against each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
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
    spaces = {one["metadata"]["name"] for one in made if one["kind"] == "Namespace"}
    assert all(one["metadata"].get("namespace") in spaces for one in made if one["kind"] != "Namespace")
    shutil.copytree(FOLDER, tmp_path / "mine")
    text = (FOLDER / "kustomization.yaml").read_text().replace("newName: spinloop,", "newName: registry/me/spinloop,")
    (tmp_path / "mine/kustomization.yaml").write_text(text)
    done = subprocess.run(["kubectl", "kustomize", tmp_path / "mine"], capture_output=True, text=True, check=True)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert done.stdout.count(f"image: registry/me/spinloop:{version}\n") == 3 and "image: spinloop" not in done.stdout


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
    all_policies = [one for one in OBJECTS if one["kind"] == "NetworkPolicy"]
    nobody = {"podSelector": {}, "policyTypes": ["Ingress"]}
    closed = [one["metadata"]["namespace"] for one in all_policies if one["spec"] == nobody]
    assert sorted(closed) == ["spinloop", "spinloop-runs"]
    let_in = {}
    for one in all_policies:
        if one["spec"] == nobody:
            continue
        (rule,) = one["spec"]["ingress"]
        here = (one["metadata"]["namespace"], one["spec"]["podSelector"]["matchLabels"][component])
        let_in[here] = set()
        for source in rule["from"]:
            space = source.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": here[0]}})
            (labels_of,) = space["matchLabels"].values()
            let_in[here].add((labels_of, source["podSelector"]["matchLabels"][component]))
    assert let_in == {
        ("spinloop", "server"): {("spinloop", "worker"), ("spinloop-runs", "spinloop-run")},
        ("spinloop", "postgres"): {("spinloop", "server")},
        ("spinloop-runs", "spinloop-run"): {("spinloop-runs", "spinloop-run")},
    }
    assert {name for _, name in [*let_in, *(one for names in let_in.values() for one in names)]} <= known


def test_pods_keep_to_the_namespaces_own_rule():
    """Catches a pod that the namespace refuses (restricted), a root in a container, and a token of the cluster in one
    that computes."""
    spaces = [one["metadata"] for one in OBJECTS if one["kind"] == "Namespace"]
    assert [one["name"] for one in spaces] == ["spinloop", "spinloop-runs"]
    assert all(one["labels"]["pod-security.kubernetes.io/enforce"] == "restricted" for one in spaces)
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


SECRET = re.compile(
    r"grep -E '(.+)' \.env \| kubectl -n (\S+) create secret generic spinloop --from-env-file=/dev/stdin"
)


def secrets(tmp_path: Path) -> dict[str, dict[str, str]]:
    """The Secret `spinloop` of each namespace, as the commands of docs/kubernetes.md make it of a `.env` in which a
    person has also set a token."""
    (tmp_path / "deployments").mkdir()
    shutil.copy(ROOT / "deployments/server-env.sh", tmp_path / "deployments")
    subprocess.run(["bash", tmp_path / "deployments/server-env.sh"], check=True, capture_output=True)
    with (tmp_path / ".env").open("a") as file:
        file.write("HF_TOKEN=hf_of_a_person\nHF_TOKEN_FILE=/x\n")
    made = {}
    for pattern, namespace in SECRET.findall((ROOT / "docs/kubernetes.md").read_text()):
        done = subprocess.run(["grep", "-E", pattern, tmp_path / ".env"], capture_output=True, text=True, check=True)
        made[namespace] = dict(line.split("=", 1) for line in done.stdout.splitlines())
    return made


def referenced(container: dict) -> set[str]:
    """The keys of the Secret `spinloop` that a container reads."""
    sources = [entry.get("valueFrom", {}).get("secretKeyRef") for entry in container["env"]]
    sources = [source for source in sources if source]
    assert all(source["name"] == "spinloop" for source in sources) and "envFrom" not in container
    return {source["key"] for source in sources}


def test_secrets_have_what_the_pods_read_and_no_more(tmp_path: Path):
    """Catches a pod that never starts, because its Secret lacks a key; a Secret of every line of `.env`; a password
    that stands in a file; the database's password, or the token, where it is not needed."""
    made = secrets(tmp_path)
    assert {space: {*keys} for space, keys in made.items()} == {
        "spinloop": {"POSTGRES_PASSWORD", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"},
        "spinloop-runs": {"PREFECT_API_AUTH_STRING", "HF_TOKEN"},
    }
    assert all(value for keys in made.values() for value in keys.values())
    read = {name: referenced(pod["spec"]["containers"][0]) for name, pod in PODS.items()}
    assert read == {
        "postgres": {"POSTGRES_PASSWORD"},
        "server": made["spinloop"].keys(),
        "worker-cpu": {"PREFECT_API_AUTH_STRING"},
        "worker-gpu": {"PREFECT_API_AUTH_STRING"},
    }
    for pod in PODS.values():
        for entry in pod["spec"]["containers"][0]["env"]:
            if "valueFrom" not in entry and any(word in entry["name"] for word in ("PASSWORD", "AUTH_STRING")):
                assert entry["value"] in ("spinloop", "PREFECT_API_AUTH_STRING")
    names = [entry["name"] for entry in PODS["server"]["spec"]["containers"][0]["env"]]
    assert names.index("POSTGRES_PASSWORD") < names.index("PREFECT_SERVER_DATABASE_CONNECTION_URL")


def test_workers_may_do_nothing_where_there_is_another_secret(tmp_path: Path):
    """Catches a role with which who starts runs reads or mounts the database's password: a pod may mount every Secret
    of its namespace and take every service account of it, and who may make jobs makes such pods."""
    roles = [one for one in OBJECTS if one["kind"] in ("Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")]
    assert [(one["kind"], one["metadata"]["namespace"]) for one in roles] == [
        ("Role", "spinloop-runs"),
        ("RoleBinding", "spinloop-runs"),
    ]
    (rules, bound) = roles
    assert bound["subjects"] == [{"kind": "ServiceAccount", "name": "worker", "namespace": "spinloop"}]
    allowed = {resource for rule in rules["rules"] for resource in rule["resources"]}
    assert allowed == {"jobs", "pods", "pods/log", "pods/status", "events"}
    assert all("*" not in [*rule["verbs"], *rule["apiGroups"]] for rule in rules["rules"])
    accounts = [one["metadata"]["namespace"] for one in OBJECTS if one["kind"] == "ServiceAccount"]
    assert accounts == ["spinloop"] and {one["metadata"]["namespace"] for one in pods_of()} == {"spinloop"}
    run = job()
    assert run["metadata"]["namespace"] == "spinloop-runs"
    (container,) = run["spec"]["template"]["spec"]["containers"]
    assert referenced(container) <= secrets(tmp_path)["spinloop-runs"].keys()
    (token,) = [entry for entry in container["env"] if entry["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True  # who has none needs none


def pods_of() -> list[dict]:
    return [one for one in OBJECTS if one["kind"] in ("Deployment", "StatefulSet")]


def test_pods_start_commands_that_are_there():
    """Catches a worker without a pool, a pool without a worker, and a claim that no job names."""
    args = [pod["spec"]["containers"][0].get("args", []) for pod in PODS.values()]
    pools = sorted(one[one.index("--pool") + 1] for one in args if "--pool" in one)
    assert pools == ["spin-cpu", "spin-gpu"]
    (claim,) = (one for one in OBJECTS if one["kind"] == "PersistentVolumeClaim")
    volumes = job()["spec"]["template"]["spec"]["volumes"]
    assert {"name": "store", "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}} in volumes
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert job()["metadata"]["namespace"] == claim["metadata"]["namespace"] == "spinloop-runs"
