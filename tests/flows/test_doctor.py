"""`spinloop doctor`, and what a run says where vLLM's environment is missing."""

from __future__ import annotations

import sys

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from spin_core.errors import BadInput
from spin_core.runtime import vllm_env


@pytest.fixture(autouse=True)
def no_server():
    """No configured server: tests/flows/pools/test_doctor_server.py has one."""
    with temporary_settings({PREFECT_API_URL: None}):
        yield


@pytest.fixture
def no_vllm(monkeypatch, tmp_path):
    """An interpreter setting that names nothing."""
    monkeypatch.setenv("SPINLOOP_VLLM_PYTHON", str(tmp_path / "absent" / "python"))
    return tmp_path


def test_doctor_says_what_is_there_and_how_to_get_the_rest(spinloop, no_vllm) -> None:
    """Catches a doctor that finds nothing wrong where nothing is, or fails for what is optional."""
    code, out, err = spinloop("doctor", "--store", no_vllm / "store")
    lines = {line[9:31].strip(): line for line in reversed(out.splitlines())}  # below: versions against tested
    assert code == 0, err
    assert lines["torch"].startswith("ok")
    assert lines["vllm"].startswith("-") and "make vllm-env" in lines["vllm"]
    assert lines["store"].startswith("ok")
    (no_vllm / "folder").mkdir()
    assert spinloop("doctor", "--store", no_vllm / "folder")[0] == 0, "a folder without a store is no fault"
    assert not (no_vllm / "store").exists(), "looking creates no store"


def test_doctor_fails_where_vllm_does_not_import(spinloop, monkeypatch, tmp_path) -> None:
    """Catches an environment that is called good because its interpreter exists. This one has no vLLM."""
    monkeypatch.setenv("SPINLOOP_VLLM_PYTHON", sys.executable)
    code, out, err = spinloop("doctor", "--store", tmp_path / "store")
    assert code == 1
    assert "No module named 'vllm'" in out and "make vllm-env" in out
    assert "vllm: needed and not in order" in err


def test_doctor_fails_where_the_server_is_not_there(spinloop, no_vllm) -> None:
    """Catches a dead server that is passed over, and one that is reported by a traceback."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        code, out, err = spinloop("doctor", "--store", no_vllm / "store")
    assert code == 1 and "none answers at http://127.0.0.1:9/api" in out
    assert err == "spinloop: server: needed and not in order; the lines above say what to do.\n"


def test_run_with_vllm_and_no_environment_is_refused_before_anything_runs(spinloop, server, no_vllm, tiny) -> None:
    """Catches a run that trains θ_0 first and then finds that it cannot generate."""
    store = no_vllm / "store"
    code, _, err = spinloop("run", tiny, "--store", store, "--set", "generate.engine=vllm")
    assert code == 2
    assert "make vllm-env" in err and str(no_vllm / "absent") in err
    assert len(err.strip().splitlines()) == 1
    assert not list(store.glob("*/records/*/*")), "nothing ran"


def test_folder_in_place_of_an_interpreter_is_refused(monkeypatch, tmp_path) -> None:
    """Catches the environment's folder given for its python, which fails in the middle of the run."""
    with pytest.raises(BadInput, match=r"there is no interpreter .*make vllm-env"):
        vllm_env.interpreter(str(tmp_path))


def test_interpreter_is_looked_for_where_the_settings_say(monkeypatch, tmp_path) -> None:
    """Catches a setting of the profile that the environment overrules, and a relative default that depends on the
    current folder."""
    monkeypatch.setenv("SPINLOOP_VLLM_PYTHON", str(tmp_path / "env"))
    assert vllm_env.place("named") == vllm_env.Path("named")
    assert vllm_env.place("") == tmp_path / "env"
    monkeypatch.delenv("SPINLOOP_VLLM_PYTHON")
    assert vllm_env.place("") == vllm_env.ROOT / ".venv-vllm" / "bin" / "python"
