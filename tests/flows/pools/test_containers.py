"""deployments/compose.yaml and Dockerfile, without a container engine: what they name exists, and the server that they
start is as closed as that of `make server`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.flows.pools.conftest import ROOT, in_full
from tests.flows.pools.shipped import Server, checkout, clean, free_port, read, server_env, strangers_are_refused

COMPOSE = (ROOT / "deployments/compose.yaml").read_text()
SERVICES = yaml.safe_load(COMPOSE)["services"]
DOCKERFILE = (ROOT / "deployments/Dockerfile").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")
COPIED = [word for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.M) for word in line.split()[:-1]]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """What deployments/server-env.sh writes."""
    assert server_env(checkout(tmp_path / "checkout")).returncode == 0
    return read(tmp_path / "checkout/.env")


def environment(service: str, env: dict[str, str]) -> dict[str, str]:
    """A service's environment as compose makes it of `.env`; KeyError for a variable that compose would require."""

    def value(match: re.Match) -> str:
        name, kind, default = match.groups()
        return env.get(name) or default if kind == "-" else env[name]

    return {name: VARIABLE.sub(value, text) for name, text in SERVICES[service]["environment"].items()}


def test_every_service_can_start_and_comes_back() -> None:
    """Catches an image whose content changes under its name, a service that stays down after a crash or a reboot, one
    that starts before what it needs, and a pool without a worker."""
    volumes = yaml.safe_load(COMPOSE)["volumes"]
    for name, service in SERVICES.items():
        tag = service["image"].partition(":")[2]  # tests/deployments/test_digests.py: what `make digests` adds
        assert re.match(r"\d", tag), f"{name}: {service['image']}"
        assert service["restart"] == ("on-failure:3" if name == "deploy" else "unless-stopped")
        assert name == "deploy" or service["healthcheck"]["test"][0] == "CMD"
        for other, how in service.get("depends_on", {}).items():
            wanted = "service_completed_successfully" if other == "deploy" else "service_healthy"
            assert how == {"condition": wanted} and other in SERVICES
        assert all(volume.partition(":")[0] in volumes for volume in service.get("volumes", []))
    for profile in ("cpu", "gpu"):
        started = [one for one in SERVICES.values() if profile in one.get("profiles", [profile])]
        commands = [one["command"] for one in started if one.get("command", [])[:2] == ["prefect", "worker"]]
        pools = [command[command.index("--pool") + 1] for command in commands]
        assert sorted(pools) == ["spin-cpu", "spin-gpu"], profile
    reserved = {name: one.get("profiles") for name, one in SERVICES.items() if "deploy" in one}
    assert reserved == {"worker-gpu": ["gpu"]}


def test_only_this_machine_reaches_a_port_and_nothing_has_more_rights_than_it_needs() -> None:
    """Catches a port on every address, a database that is published, the host's network, and a privileged container."""
    published = {name: one["ports"] for name, one in SERVICES.items() if "ports" in one}
    assert published == {"server": ["127.0.0.1:4200:4200"]}
    for name, service in SERVICES.items():
        assert not service.keys() & {"network_mode", "privileged", "pid", "ipc", "expose", "cap_add", "userns_mode"}, (
            name
        )
        assert service["security_opt"] == ["no-new-privileges:true"] and service["cap_drop"] == ["ALL"], name
        assert not [volume for volume in service.get("volumes", []) if volume.startswith(("/", ".", "~"))]
        assert service["read_only"] is True, name
        written = {place.partition(":")[0] for place in service["tmpfs"]}
        assert written == {"/tmp", "/var/run/postgresql" if name == "postgres" else "/home/spinloop"}
    assert SERVICES["postgres"]["user"] == "999:999"  # root without capabilities cannot become it


def test_nobody_but_the_server_reaches_the_database() -> None:
    """Catches one network for all: whoever may start runs could then try passwords at Postgres."""
    networks = yaml.safe_load(COMPOSE)["networks"]
    of = {name: sorted(service["networks"]) for name, service in SERVICES.items()}
    assert of.pop("postgres") == ["database"] and of.pop("server") == ["database", "runs"]
    assert {*map(tuple, of.values())} == {("runs",)}
    assert networks["database"] == {"internal": True} and not networks["runs"]


def test_token_reaches_the_workers_alone_and_as_a_file(tmp_path: Path) -> None:
    """Catches a token in an environment that `docker inspect` shows, one that server or database get too, one that
    huggingface_hub does not read where it is, and a stack that cannot start without one."""
    assert {name for name, one in SERVICES.items() if one.get("secrets")} == {n for n in SERVICES if "worker" in n}
    (secret,) = yaml.safe_load(COMPOSE)["secrets"].items()
    assert secret == ("hf_token", {"file": "${HF_TOKEN_FILE:-/dev/null}"})
    assert "HF_TOKEN}" not in COMPOSE and "env_file" not in COMPOSE
    place = SERVICES["worker-gpu"]["environment"]["HF_TOKEN_PATH"]
    assert place == "/run/secrets/hf_token"
    (tmp_path / "token").write_text("hf_of_a_person\n")
    for file, seen in ((tmp_path / "token", "hf_of_a_person"), (Path("/dev/null"), "None")):
        command = [sys.executable, "-c", "import huggingface_hub; print(huggingface_hub.get_token())"]
        env = {**clean(tmp_path, HF_TOKEN_PATH=str(file)), "HF_HOME": str(tmp_path)}
        env.pop("HF_TOKEN", None)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert done.stdout == f"{seen}\n"


def test_compose_starts_nothing_without_passwords(env: dict[str, str]) -> None:
    """Catches a stack that comes up with an empty password, and a password that the repository knows."""
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "POSTGRES_PASSWORD"):
        uses = [use for use in VARIABLE.findall(COMPOSE) if use[0] == name]
        assert any(kind == "?" and "server-env.sh" in message for _, kind, message in uses), name
    made = [value.removeprefix("admin:") for name, value in env.items() if re.search("AUTH_STRING|PASSWORD", name)]
    assert len(made) == 3 and min(map(len, made)) >= 32
    for service in SERVICES:
        for name, text in environment(service, env).items():
            if re.search("AUTH_STRING|PASSWORD|CONNECTION_URL", name):
                assert any(password in text for password in made), (service, name)
    assert env["COMPOSE_PROFILES"] in ("cpu", "gpu")
    assert not re.search(r"^\s*(ARG|ENV).*(PASSWORD|SECRET|TOKEN|AUTH)", DOCKERFILE, re.M)


def test_commands_are_there() -> None:
    """Catches a command or an option that Prefect or spinloop does not have."""
    modules = {"prefect": "prefect", "spinloop": "flows.cli"}
    options: dict[tuple[str, ...], set[str]] = {}
    for name in SERVICES.keys() - {"postgres"}:
        command = SERVICES[name]["command"]
        words = tuple(word for word in command[:3] if not word.startswith("-"))
        options.setdefault(words, set()).update(word for word in command if word.startswith("--"))
    for (program, *words), used in options.items():
        command = [sys.executable, "-m", modules[program], *words, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)
        assert all(word in done.stdout for word in used), (command, used)


def test_image_has_what_runs_and_no_secret(tmp_path: Path) -> None:
    """Catches a package or data file that the image lacks, an image that runs as root, and one that carries `.env`."""
    for word in COPIED:
        source = ROOT / word
        assert source.exists(), word
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, tmp_path / word, ignore=ignored) if source.is_dir() else shutil.copy(source, tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", "import flows.cli.__main__ as c; print(c.__file__); c.main(['run', '--help'])"],
        cwd=tmp_path, env=clean(tmp_path, PYTHONPATH=str(tmp_path)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith(str(tmp_path)), done.stderr
    assert "demo,demo-bland,demo-tasks,gsm8k-smollm2" in "".join(done.stdout.split())  # help is wrapped at hyphens
    assert (tmp_path / "deployments/prefect.yaml").exists()
    assert re.findall(r"^USER (.+)$", DOCKERFILE, re.M) == ["1000:1000"]
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    words = [one.replace(".", r"\.").replace("**/", "(?:.+/)?").replace("*", "[^/]*") for one in patterns]
    kept_out = [re.compile(f"{word}(/.*)?") for word in words]
    for secret in (
        ".env",
        ".env.old",
        "deployments/.env",
        ".venv/bin/python",
        ".venv-vllm",
        ".spinloop/x",
        ".git/config",
    ):
        assert any(one.fullmatch(secret) for one in kept_out), secret
    for path in tmp_path.rglob("*"):
        name = str(path.relative_to(tmp_path))
        assert "__pycache__" in name or not any(one.fullmatch(name) for one in kept_out), name


@in_full
def test_strangers_are_refused(env: dict[str, str], tmp_path: Path) -> None:
    """Catches a server of compose.yaml that lets in who `make server` refuses, and workers that it refuses."""
    folder, port, elsewhere = checkout(tmp_path / "server"), free_port(), tmp_path / "no-env"
    elsewhere.mkdir()
    assert server_env(folder, port).returncode == 0
    made = read(folder / ".env")
    settings = environment("server", made)
    del settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    settings |= {"PREFECT_SERVER_API_HOST": "127.0.0.1", "PREFECT_SERVER_API_PORT": str(port)}
    command = ["env", f"--chdir={elsewhere}", sys.executable, "-m", "prefect", "server", "start"]
    server = Server(folder, command, port, **settings)
    try:
        strangers_are_refused(server)
        settings = {**environment("deploy", made), "PREFECT_API_URL": server.url}
        command = [sys.executable, "-m", "prefect", "work-pool", "create", "spin-gpu", "--type", "process"]
        done = subprocess.run(
            command, cwd=elsewhere, env=clean(elsewhere, **settings), capture_output=True, check=False
        )
        assert done.returncode == 0, done.stdout
    finally:
        server.stop()


@pytest.mark.skipif(
    not shutil.which("docker") or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0,
    reason="docker compose is not on this machine",
)
def test_compose_itself_takes_the_file(env: dict[str, str], tmp_path: Path) -> None:
    """Catches a file that is YAML but not compose's."""
    command = ["docker", "compose", "--env-file", tmp_path / "checkout/.env", "-f", ROOT / "deployments/compose.yaml"]
    done = subprocess.run([*command, "config", "--quiet"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
