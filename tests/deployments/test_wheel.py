"""The built wheel, installed into an environment of its own and used in a folder that is no checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.server.form import PROFILE_NAMES
from tests.flows import migrated
from tests.flows.fixtures import TINY

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without a network from a copy: nothing of an earlier build gets in."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("flows", "tasks", "spin_core", "deployments"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = ["wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", out, copy]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True, capture_output=True, text=True)
    return next(out.glob("spinloop-*.whl"))


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory) -> Path:
    """An environment with the wheel and, behind it, the packages of this one but for spinloop itself."""
    folder = tmp_path_factory.mktemp("place")
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile"]
    into = [sys.executable, "-m", "pip", "--python", python, "install", *options, wheel]
    subprocess.run(into, check=True, capture_output=True, text=True)
    (library,) = folder.glob("lib/python*/site-packages")
    # The .pth files of a folder that a .pth names are not read: not this environment's editable spinloop.
    (library / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Path:
    """The folder where a person stands."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(scope="module")
def spinloop(place: Path, empty: Path, tmp_path_factory) -> Callable[..., Done]:
    """The installed command, in the empty folder, with no server but the one that `url` names."""
    home = migrated.home(tmp_path_factory.mktemp("prefect"))
    left_out = ("PREFECT_", "SPINLOOP_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}

    def call(*words: str, url: str = "") -> Done:
        env = {**kept, "PREFECT_HOME": str(home), "SPINLOOP_VLLM_PYTHON": "/nonexistent"} | (
            {"PREFECT_API_URL": url} if url else {}
        )
        command = [place / "bin" / "spinloop", *words]
        return subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, check=False)

    return call


def test_wheel_has_three_names_and_what_commands_read(wheel: Path) -> None:
    """Catches a fourth top-level name in everybody's site-packages, a profile that stays behind, tests and files of a
    checkout that go along."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"flows", "tasks", "spin_core"}
    inside = "spin_core/deployments/"
    profiles = {f"{inside}profiles/{name}.yaml" for name in PROFILE_NAMES}
    pools = {f"{inside}pools/{kind}.json" for kind in ("process", "docker", "kubernetes")}
    files = {f"{inside}prefect.yaml", f"{inside}automations.yaml"}
    assert {name for name in names if name.startswith(inside)} == profiles | pools | files
    assert profiles and not [name for name in names if name.endswith((".pyc", ".ipynb"))]


def test_plan_and_doctor_run_in_any_folder(spinloop, empty: Path) -> None:
    """Catches a wheel whose command has no profile, imports the checkout, or writes where the person stands."""
    helped = spinloop("run", "--help")
    assert "one of: demo," in helped.stdout, helped.stderr
    planned = spinloop("plan", "demo")
    assert planned.returncode == 0 and "would run  docstring_rows" in planned.stdout, planned.stderr
    looked = spinloop("doctor")
    assert looked.returncode == 0 and "missing" not in looked.stdout, looked.stdout + looked.stderr
    assert not list(empty.iterdir())


def test_run_from_the_wheel(spinloop, place: Path, empty: Path) -> None:
    """Catches a stage's process that does not find the package, and a report without what a checkout has beside it."""
    tiny = {**TINY, "iterations": 1, "dataset": {**TINY["dataset"], "limit": 24, "test_limit": 8}}  # type: ignore[dict-item]
    (empty / "mine.yaml").write_text(yaml.safe_dump(tiny))
    done = spinloop("run", "mine.yaml", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["ran"] > 8 and Path(outcome["folder"]).is_relative_to(empty / ".spinloop")
    page = Path(outcome["report"]).read_text(encoding="utf-8")
    assert "Reproduction ledger" in page and "preset zephyr-7b" in page
    again = spinloop("run", "mine.yaml", "--json")
    assert json.loads(again.stdout)["ran"] == 0


def test_deploy_from_the_wheel(spinloop, server: str) -> None:
    """Catches a deploy that needs prefect.yaml, pools or automations of a checkout, or flows that only it has."""
    done = spinloop("deploy", url=server)
    assert done.returncode == 0, done.stderr
    for what in ("pool              spin-gpu", "spin/spin", "finetune/spin-gpu", "doctor/spin-cpu", "zombie runs"):
        assert " ".join(what.split()) in " ".join(done.stdout.split()), done.stdout


def test_another_interpreter_gets_no_packages_of_the_wheel_s(place: Path, tmp_path: Path) -> None:
    """Catches vLLM's interpreter importing torch and the rest from where the wheel lies, of another version."""
    other = tmp_path / "other"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", other], check=True)
    (library,) = place.glob("lib/python*/site-packages")
    (library / "only_here.py").write_text("")
    code = (
        "import subprocess, sys\n"
        "from spin_core.runtime.launch import python_path\n"
        "path = {'PYTHONPATH': python_path(sys.argv[1])}\n"
        "look = 'from importlib.util import find_spec; import spin_core.errors; assert not find_spec(\"only_here\")'\n"
        "sys.exit(subprocess.run([sys.argv[1], '-P', '-c', look], env=path).returncode)\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [place / "bin" / "python", "-P", "-c", code, other / "bin" / "python"]
    done = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    library_of_own = [place / "bin" / "python", "-P", "-c", "import only_here"]
    subprocess.run(library_of_own, cwd=tmp_path, env=kept, check=True)
