"""Other people's machines: broken files of settings, settings that were made for other flows, no home, no folder to
stand in, and terminals that are not UTF-8. tests/flows/test_embedded.py runs a profile under such settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.cli.__main__ import _in_a_sentence
from flows.server import settings
from flows.server.errors import refused
from spin_core.errors import BadInput
from tests.flows import migrated

ROOT = Path(__file__).parents[2]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"PYTHONIOENCODING": "latin-1"}

# Prefect is imported once in a process: each case has a fork of one that has read all else that it imports.
FORKED = """
import json, os, pwd, sys
import anyio.from_thread, cachetools, coolname, dotenv, fsspec, griffe, h2.connection, httpx, humanize, jsonschema
import opentelemetry.propagate, orjson, prometheus_client, pydantic_settings, rich.traceback, toml
import websockets.asyncio.client
from flows.cli import imports, push, report, store
from flows.cli.__main__ import main
assert "prefect" not in sys.modules
for case in json.loads(sys.argv[1]):
    if not os.fork():
        out = os.open(case["out"], os.O_CREAT | os.O_WRONLY)
        os.dup2(out, 1), os.dup2(out, 2)
        os.environ.update(case["env"])
        os.chdir(case["cwd"])
        if case["gone"]:
            os.rmdir(case["cwd"])
        if "HOME" in case["env"]:
            del os.environ["HOME"]
            pwd.getpwuid = lambda number: {}[number]  # a container's user that the image does not know
        main(case["args"])
        os._exit(0)
    os.wait()
"""


def _others(home: Path, **more: str) -> dict[str, str]:
    """An environment without Prefect's settings but its home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT), **more}


def _said(tmp_path: Path, cases: list[tuple[str, Callable[[Path], None], dict[str, str]]]) -> list[str]:
    """What each command prints, where `make` has filled its folder (which is Prefect's home too)."""
    every = []
    for number, (command, make, env) in enumerate(cases):
        place = tmp_path / str(number)
        place.mkdir()
        make(place)
        gone = make is _gone
        home = str(tmp_path / "prefect" if gone else place)
        out = str(tmp_path / f"{number}.out")
        every.append(
            {"args": command.split(), "cwd": str(place), "env": {"PREFECT_HOME": home, **env}, "gone": gone, "out": out}
        )
    subprocess.run(
        [sys.executable, "-c", FORKED, json.dumps(every)], env=_others(tmp_path, SPINLOOP_STORE="s"), check=True
    )
    return [Path(case["out"]).read_text(encoding="utf-8") for case in every]


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes(content) and None


def _gone(place: Path) -> None: ...


PROFILE, PYPROJECT = _file("profiles.toml", b'active = "x'), _file("pyproject.toml", b"[tool.prefect\n")
LATIN_1, NOTHING = _file(".env", "A=\xfc".encode("latin-1")), _file("x", b"")
BROKEN: list[tuple[str, Callable[[Path], None], dict[str, str], str]] = [
    ("plan demo", PROFILE, {}, "profiles.toml: Prefect cannot read settings from it (Unterminated string"),
    ("plan demo", PYPROJECT, {}, "pyproject.toml: Prefect cannot read settings from it (Expected ']'"),
    ("run demo", LATIN_1, {}, ".env: Prefect cannot read settings from it (byte 2 is not UTF-8)"),
    ("plan demo", NOTHING, {"PREFECT_SERVER_API_PORT": "hunter2"}, "ServerAPISettings.port: Input should be"),
    ("plan demo", _gone, {}, "The current folder cannot be used"),
    *[(command, NOTHING, {"HOME": ""}, "HOME is not set") for command in ("plan demo", "run demo", "doctor", "deploy")],
]
FREE = {"--help": "usage: spinloop", "store ls": "there is no spinloop store here", "report": "there is no spinloop"}


def test_what_prefect_cannot_read_is_one_sentence_of_every_command(tmp_path) -> None:
    """Catches a traceback where a command imports Prefect before anything can say what is wrong; a sentence of
    pydantic's, which quotes what was given and may be a password; and a command that needs no Prefect and ends too."""
    free = [(command, LATIN_1, {}, sentence) for command, sentence in FREE.items()]
    said = _said(tmp_path, [case[:3] for case in BROKEN + free])
    for (command, *_, sentence), text in zip(BROKEN + free, said, strict=True):
        assert sentence in text, f"{command}: {text}"
        assert "hunter2" not in text
        if command != "--help":
            assert text.startswith("spinloop: ") and len(text.splitlines()) == 1, text


def test_home_that_cannot_be_written_is_named(tmp_path) -> None:
    """Catches a server that dies without a word because its database has no place."""
    (tmp_path / "file").touch()
    with temporary_settings({PREFECT_HOME: tmp_path / "file" / "prefect"}), pytest.raises(BadInput) as refusal:
        settings.home()
    assert f"PREFECT_HOME {tmp_path / 'file' / 'prefect'}: cannot be written" in str(refusal.value)


def test_server_that_does_not_start_shows_its_last_lines(monkeypatch, tmp_path) -> None:
    """Catches a failed start that says to start another server by hand, to see why."""
    from flows.server.embedded import EmbeddedServer
    from spin_core.errors import SpinloopError

    (tmp_path / "uvicorn.py").write_text("raise OSError('disk I/O error')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        temporary_settings({PREFECT_HOME: tmp_path / "prefect"}),
        pytest.raises(SpinloopError, match="did not start") as failure,
        EmbeddedServer().ready(),
    ):
        pass
    assert str(failure.value).endswith("Its last lines:\n  | OSError: disk I/O error")
    assert str(tmp_path / "prefect" / "prefect.db") in str(failure.value)


@pytest.mark.parametrize("status", [401, 404, 500])
def test_no_sentence_says_none(status: int) -> None:
    """Catches "PREFECT_API_URL None": a run's own server has no such setting once the run is over."""
    request = httpx.Request("POST", "http://127.0.0.1:1/api/flow_runs")
    answer = httpx.Response(status, request=request, text="no")
    with temporary_settings({PREFECT_API_URL: None}):
        for error in (httpx.HTTPStatusError("", request=request, response=answer), httpx.ConnectError("")):
            said = str(refused(error))
            assert said.startswith("The run's own Prefect server ") and "None" not in said
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        assert str(refused(httpx.ConnectError(""))).startswith("PREFECT_API_URL http://127.0.0.1:1/api: ")


DECLARED = """
import json
from pathlib import Path
from prefect import Flow
from flows import execute, stages
from flows.cli import doctor_server
from flows.server import deployed
from spin_core.stages import reformat
from tasks.runner.stage import task_of
places = [vars(one).values() for one in (execute, stages, deployed, doctor_server)]
flows = [one for place in places for one in place if isinstance(one, Flow)]
task = task_of(reformat)
print(json.dumps([[[f.name, f.retries, f.retry_delay_seconds, f.persist_result, str(f.result_storage)] for f in flows],
                  [task.retries, task.retry_delay_seconds, task.persist_result]]))
"""


def test_flows_and_tasks_say_what_others_set_for_theirs(tmp_path) -> None:
    """Catches bad input that is played three times, a result that is written, and a storage block that is looked up,
    because settings for other flows say so."""
    theirs = {
        "PREFECT_FLOWS_DEFAULT_RETRIES": "2",
        "PREFECT_FLOWS_DEFAULT_RETRY_DELAY_SECONDS": "7",
        "PREFECT_TASKS_DEFAULT_RETRIES": "5",
        "PREFECT_TASKS_DEFAULT_RETRY_DELAY_SECONDS": "7",
        "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true",
        "PREFECT_TASKS_DEFAULT_PERSIST_RESULT": "true",
        "PREFECT_RESULTS_DEFAULT_STORAGE_BLOCK": "s3-bucket/theirs",
    }
    done = subprocess.run(
        [sys.executable, "-c", DECLARED], env=_others(tmp_path, **theirs), capture_output=True, check=True, cwd=tmp_path
    )
    flows, task = json.loads(done.stdout)
    assert len(flows) >= 11
    assert {tuple(said) for _, *said in flows} == {(0, 0, False, os.devnull)}
    assert task == [2, 0, False]


OWN = """
import json
from pathlib import Path
from prefect.settings import get_current_settings
from flows.server import settings
settings.read()
with settings.own("http://127.0.0.1:1/api"):
    now = get_current_settings()
    shown = now.to_environment_variables(exclude_unset=False)
    print(json.dumps([shown, now.flows.heartbeat_frequency, settings.own_server(Path("/h"))]))
"""


def test_run_with_a_server_of_its_own_has_none_of_the_users_settings(tmp_path) -> None:
    """Catches a setting of the user's (environment, profile, prefect.toml, pyproject.toml, .env) that reaches a run's
    own server or its client; and a log that is no longer the user's."""
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "profiles.toml").write_text(
        'active = "x"\n[profiles.x]\nPREFECT_API_KEY = "k77"\nPREFECT_LOGGING_COLORS = "false"\n'
    )
    (place / "prefect.toml").write_text("[client]\nmax_retries = 77\n[tasks.runner]\nthread_pool_max_workers = 77\n")
    (place / "pyproject.toml").write_text("[tool.prefect.server.database]\ntimeout = 77\n")
    (place / ".env").write_text("PREFECT_CLIENT_METRICS_PORT=77\n")
    theirs = {"PREFECT_API_AUTH_STRING": "a:77", "PREFECT_API_REQUEST_TIMEOUT": "77", "PREFECT_DEBUG_MODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OWN], env=_others(tmp_path, **theirs), capture_output=True, check=False, cwd=place
    )
    assert done.returncode == 0, done.stderr
    shown, heartbeat, server = json.loads(done.stdout)
    assert shown["PREFECT_API_URL"] == "http://127.0.0.1:1/api" and heartbeat is None
    assert shown["PREFECT_HOME"] == str(tmp_path) and shown["PREFECT_DEBUG_MODE"] == "False"
    assert shown["PREFECT_LOGGING_COLORS"] == "False"
    assert not {name: value for name, value in shown.items() if "77" in value}
    assert {name for name in server if name.upper().startswith("PREFECT_")} == {
        "PREFECT_HOME", "PREFECT_PROFILES_PATH", "PREFECT_SERVER_DATABASE_CONNECTION_URL",
        "PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_SERVER_UI_ENABLED", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL",
    }  # fmt: skip
    assert not [name for name in (".env", "prefect.toml", "pyproject.toml") if (settings.HERE / name).exists()]


@pytest.mark.parametrize("locale", [ASCII, LATIN], ids=["ascii", "latin-1"])
def test_terminal_that_is_not_utf8_gets_question_marks(finished, tmp_path, locale: dict[str, str]) -> None:
    """Catches help or a report that ends in a Unicode error, and figures that lose their minus."""
    env = _others(migrated.home(tmp_path), SPINLOOP_STORE=str(finished[0]), **locale)
    for command in ("run --help", "report"):
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *command.split()],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        assert b"?_0" in done.stdout
        assert b"?0." not in done.stdout  # of a figure's minus


def test_name_that_is_no_text_is_a_sentence() -> None:
    """Catches a traceback of the JSON of Prefect's client, where a folder's name is not UTF-8."""
    with pytest.raises(UnicodeEncodeError) as error:
        '{"base_dir": "/data/pr\udcfc"}'.encode()
    said = str(_in_a_sentence(error.value))
    assert said.startswith("The name of a folder or file is not UTF-8 (") and "/data/pr\\udcfc" in said


@pytest.mark.full
def test_three_first_runs_at_once_make_one_database(tmp_path) -> None:
    """Catches first runs at the same time that each begin to make the database of one home, of which one ends."""
    code = "from flows.server.embedded import EmbeddedServer\nwith EmbeddedServer().ready(): print('up')"
    command = [sys.executable, "-c", code]
    env = _others(tmp_path / "prefect")
    started = [subprocess.Popen(command, env=env, cwd=tmp_path, stdout=-1, stderr=-1) for _ in range(3)]
    ended = [one.communicate(timeout=240) for one in started]
    assert [out for out, _ in ended] == [b"up\n"] * 3, ended
