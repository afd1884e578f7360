"""What can be wrong with the configured Prefect server, a sentence each."""

from __future__ import annotations

import re

import httpx
from prefect import __version__
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_URL

from spin_core.errors import SpinloopError, one_line


def refused(error: BaseException) -> SpinloopError | None:
    """The sentence of an error that Prefect's client raised about its server; None for another error."""
    url = PREFECT_API_URL.value()
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in (401, 403):
            return SpinloopError(
                f"PREFECT_API_URL {url}: the server asks for a login; set PREFECT_API_AUTH_STRING (`make server` keeps "
                "it in .env, which is read in that folder only)."
            )
        request = f"{error.request.method} {error.request.url.path}"
        return SpinloopError(f"PREFECT_API_URL {url}: {request} gave {status}: {one_line(error.response.text, 300)}")
    if isinstance(error, httpx.HTTPError):
        return SpinloopError(f"PREFECT_API_URL {url}: the server stopped answering ({type(error).__name__}).")
    return None


def older(client: SyncPrefectClient) -> str:
    """The server's version where its first two numbers are below this client's; else empty."""
    theirs = client.api_version()
    return theirs if _minor(theirs) < _minor(__version__) else ""


def _minor(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]
