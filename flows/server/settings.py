"""Prefect's settings. They are the user's, and made for other flows too: where a server is configured they say which,
and where none is, a run and the server that it brings take none of them but the home and the log (`own`, `own_server`).

Nothing here is imported with Prefect: importing it reads the settings, and what is wrong with them is to be a sentence.
"""

from __future__ import annotations

import io
import os
import sys
import tomllib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from inspect import isclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from flows import proxies
from spin_core.errors import BadInput, one_line

HERE = Path(__file__).parent
"""Where the run's own server is started: Prefect reads `.env`, prefect.toml and pyproject.toml of that folder."""

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The console only: the server still gets every log line of a run.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # a dump of each event that a lost server did not get
}


def quiet() -> None:
    """No telemetry, and nothing of Prefect's on the console; before Prefect is imported, and where the environment says
    nothing else."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def read() -> None:
    """Import Prefect, which reads its settings. Raises BadInput naming what is wrong with them, FileNotFoundError where
    the current folder is gone."""
    os.getcwd()
    said = io.StringIO()  # a broken file is a warning for each section, before it is an error
    try:
        with redirect_stderr(said), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to create the Prefect home")  # `home` says so where it matters
            import prefect.context  # noqa: F401
    except Exception as error:
        raise BadInput(_sentence(error)) from None
    sys.stderr.write(said.getvalue())


def configured_server() -> str | None:
    """The API that Prefect's settings name. Raises BadInput for settings that cannot be read, for a proxy that cannot
    be used, without which no client begins, and where a login that is not of this server would be sent there."""
    proxies.check()
    read()
    from prefect.settings import PREFECT_API_URL

    url: str | None = PREFECT_API_URL.value()
    if url:
        from flows.server import login

        login.check(url)
    return url


@contextmanager
def own(url: str) -> Iterator[None]:
    """Inside, this process has the settings of a run with a server of its own at `url`: Prefect's defaults, the user's
    home, and what the user says of logging."""
    from prefect.context import SettingsContext, get_settings_context
    from prefect.settings import get_current_settings

    users, kept = get_settings_context(), get_current_settings()
    sections = {name: _defaults(section) for name, section in _sections(type(kept)).items() if name != "logging"}
    sections["api"].url = url
    # A heartbeat thread costs a sync flow one second at its end, and no automation listens to this server.
    sections["flows"].heartbeat_frequency = None
    settings = type(kept)(home=kept.home, logging=kept.logging, debug_mode=False, **sections)
    with SettingsContext(profile=users.profile, settings=settings):
        yield


def own_server(home: Path) -> dict[str, str]:
    """The environment of a run's own server, whose database is in `home`; to be started in the folder HERE."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name == "PREFECT_SERVER_ENCRYPTION_KEY" or not name.upper().startswith("PREFECT_")  # the database's own
    }
    return inherited | {
        "DO_NOT_TRACK": "1",
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": os.devnull,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
    }


def home() -> Path:
    """Prefect's home, made where it is not there. Raises BadInput where it cannot be made or written."""
    from prefect.settings import PREFECT_HOME

    folder = Path(PREFECT_HOME.value()).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        why = "" if os.access(folder, os.W_OK | os.X_OK) else "it is not yours to write"
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise BadInput(
            f"PREFECT_HOME {folder}: cannot be written ({why}), and the run's own Prefect server keeps its database "
            "there; set PREFECT_HOME to a folder that can."
        )
    return folder


def _sections(model: Any) -> dict[str, Any]:
    """The fields of a settings class that are settings classes themselves."""
    from prefect.settings.base import PrefectBaseSettings

    fields = {name: field.annotation for name, field in model.model_fields.items()}
    return {name: kind for name, kind in fields.items() if isclass(kind) and issubclass(kind, PrefectBaseSettings)}


def _defaults(model: Any) -> Any:
    """One section with Prefect's defaults: validated, it would read environment and files."""
    return model.model_construct(**{name: _defaults(section) for name, section in _sections(model).items()})


def _sentence(error: Exception) -> str:
    """What is wrong, and with which file or setting, where Prefect cannot be imported."""
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return f"HOME is not set, and the password file has no user {os.getuid()}; set HOME to a folder of yours."
    for file in _files():
        if why := _unreadable(file):
            return f"{file.absolute()}: Prefect cannot read settings from it ({why}); correct it, or move it away."
    wrong = one_line(error)
    if isinstance(error, ValidationError):  # its own text has the value too, which may be a password
        wrong = "; ".join(f"{error.title}.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    return (
        f"Prefect's settings are not valid ({wrong}); correct them in the environment, the profile, .env, prefect.toml "
        "or pyproject.toml."
    )


def _unreadable(file: Path) -> str:
    """Why a file of settings cannot be read; empty where it can, or is not there."""
    try:
        text = file.read_text(encoding="utf-8")
        if file.name != ".env":
            tomllib.loads(text)
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        return f"byte {error.start} is not UTF-8"
    except (OSError, ValueError) as error:
        return one_line(error)
    return ""


def _files() -> list[Path]:
    """What Prefect reads its settings from."""
    home = os.environ.get("PREFECT_HOME") or "~/.prefect"
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or Path(home, "profiles.toml"))
    return [profiles.expanduser(), Path(".env"), Path("prefect.toml"), Path("pyproject.toml")]
