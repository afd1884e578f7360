"""What can be wrong with a Prefect server, the configured one or a run's own, a sentence each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httpx

from spin_core.errors import SpinloopError, one_line

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def refused(error: BaseException) -> SpinloopError | None:
    """The sentence of an error that Prefect's client raised about its server; None for another error."""
    if not isinstance(error, httpx.HTTPError):
        return None
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    where = f"PREFECT_API_URL {url}: the server" if url else "The run's own Prefect server"
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status in (401, 403) and url:
            return SpinloopError(
                f"{where} asks for a login; set PREFECT_API_AUTH_STRING (`make server` keeps it in .env, which is read "
                "in that folder only)."
            )
        request = f"{error.request.method} {error.request.url.path}"
        return SpinloopError(f"{where} answered {request} with {status}: {one_line(error.response.text, 300)}")
    return SpinloopError(f"{where} stopped answering ({type(error).__name__}).")


def older(client: SyncPrefectClient) -> str:
    """The server's version where its first two numbers are below this client's; else empty."""
    from prefect import __version__

    theirs = client.api_version()
    return theirs if _minor(theirs) < _minor(__version__) else ""


def _minor(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:2]]
