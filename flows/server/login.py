"""Whose login goes where: the passwords that a file has go to the server that the same file names, and to no other.

Prefect puts its settings together one by one: with only PREFECT_API_URL overridden it would send the password of
`.env` to whatever server that is. What the environment has goes anywhere: who set it meant this command.

    python -m flows.server.login       what `make worker` asks first: a sentence and exit code 1 where it would leak
"""

from __future__ import annotations

import sys

from prefect.settings import get_current_settings
from prefect.settings.models.api import APISettings
from prefect.settings.models.client import ClientSettings
from prefect.settings.sources import (
    EnvFilterSettingsSource,
    FilteredDotEnvSettingsSource,
    PrefectTomlConfigSettingsSource,
    ProfileSettingsTomlLoader,
    PyprojectTomlConfigSettingsSource,
)

from spin_core.errors import BadInput

CREDENTIALS = (
    ("PREFECT_API_AUTH_STRING", APISettings, "auth_string"),
    ("PREFECT_API_KEY", APISettings, "key"),
    ("PREFECT_CLIENT_CUSTOM_HEADERS", ClientSettings, "custom_headers"),
)
NONE = {"PREFECT_API_AUTH_STRING": "", "PREFECT_API_KEY": "", "PREFECT_CLIENT_CUSTOM_HEADERS": "{}"}
"""The environment of a process that is to take no login of a file."""
FILES = {
    ".env": FilteredDotEnvSettingsSource,
    "prefect.toml": PrefectTomlConfigSettingsSource,
    "pyproject.toml": PyprojectTomlConfigSettingsSource,
    "Prefect's profile": ProfileSettingsTomlLoader,
}
"""What Prefect reads after the environment, the first before the second."""


def check(url: str) -> None:
    """Raise BadInput where a login that Prefect's client would send to `url` is of a file that names another server,
    or none."""
    settings = get_current_settings()
    for name, model, field in CREDENTIALS:
        if not getattr(settings.client if model is ClientSettings else settings.api, field):
            continue
        if field == "key" and settings.api.auth_string:  # the client sends one of the two
            continue
        if field in EnvFilterSettingsSource(model)():
            continue
        for file, source in FILES.items():
            if not source(model)().get(field):
                continue
            meant = source(APISettings)().get("url") or ""
            if meant.rstrip("/") != url.rstrip("/"):
                raise BadInput(
                    f"PREFECT_API_URL {url}: the {name} of {file} is for {meant or 'no server, as it names none'}, and "
                    f"is sent nowhere else; set {name} beside PREFECT_API_URL (empty: no login), or unset the address."
                )
            break


if __name__ == "__main__":
    try:
        check(get_current_settings().api.url or "")
    except BadInput as error:
        sys.exit(f"spinloop: {error}")
