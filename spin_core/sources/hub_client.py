"""The hub's client, made patient: a hub that has too many requests is asked again after the pause that it wants.

Is not: what is asked (`hub.py`, `spin_core/report/hub_push.py`). huggingface_hub waits in some of its requests as long
as the answer says, a day too, and in others not at all; here every request waits, up to LONGEST, and says so on
standard error. For all that uses huggingface_hub in this process.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import Any

LONGEST = 900.0  # seconds that a request is waited for in all: three of the public hub's windows
FIRST, MOST = 2.0, 60.0  # seconds of a pause where the hub names none

_at_once: ContextVar[bool] = ContextVar("at_once", default=False)
_speaking = threading.Lock()
_until = 0.0


class TooManyRequests(Exception):
    """The hub wants a longer pause than is waited for."""


@contextmanager
def at_once() -> Iterator[None]:
    """Inside, this thread does not wait: there is something else to go on with."""
    token = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(token)


@cache
def be_patient() -> None:
    """From now on the requests of huggingface_hub wait; they raise TooManyRequests where the pause is too long. Raises
    what its client raises where the environment names a proxy that it cannot use."""
    from huggingface_hub import get_session, set_client_factory

    known: Any = get_session()

    def make() -> Any:
        client = type(known)(
            event_hooks=known.event_hooks, follow_redirects=known.follow_redirects, timeout=known.timeout
        )
        client.send = partial(_send, client.send)
        return client

    set_client_factory(make)


def is_busy(response: Any) -> bool:
    """Whether an answer (None: there was none) says that there are too many requests."""
    status = getattr(response, "status_code", 0)
    return status == 429 or (status == 503 and "retry-after" in response.headers)


def _send(send: Callable[..., Any], request: Any, **how: Any) -> Any:
    waited, pause = 0.0, FIRST
    while True:
        response = send(request, **how)
        if _at_once.get() or not is_busy(response):
            return response
        wanted = _wanted(response.headers)
        seconds = pause if wanted is None else max(wanted, 1.0)
        pause = min(2 * pause, MOST)
        if waited + seconds > LONGEST:
            response.close()
            raise TooManyRequests(f"it wants a pause of {seconds:.0f} s" + f", after {waited:.0f} s" * (waited > 0))
        _wait(seconds, f"{request.url.host} answers {response.status_code}, too many requests")
        waited += seconds
        if not _is_whole(request):  # whoever reads it from a file sends it again; the pause is over
            for name in ("retry-after", "ratelimit"):
                response.headers.pop(name, None)
            return response
        response.close()


def _wanted(headers: Mapping[str, str]) -> float | None:
    """Seconds that the hub wants to be left alone for; None where it does not say."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limit = parse_ratelimit_headers(headers)
    if limit is not None and not limit.remaining:
        return float(limit.reset_in_seconds)
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    with suppress(ValueError):
        return parsedate_to_datetime(text).timestamp() - time.time()
    return None


def _is_whole(request: Any) -> bool:
    """Whether the request's body is in memory, and not read while it is sent."""
    try:
        return request.content is not None
    except Exception:  # httpx's RequestNotRead, of whichever httpx this huggingface_hub has
        return False


def _wait(seconds: float, why: str) -> None:
    """Of eight downloads that wait at once, one says so."""
    global _until
    with _speaking:
        is_said = time.monotonic() < _until
        _until = max(_until, time.monotonic() + seconds)
    if not is_said:
        from tqdm import tqdm

        tqdm.write(f"note: {why}; waiting {seconds:.0f} s.", file=sys.stderr)  # on a line of its own beside a bar
    time.sleep(seconds)
