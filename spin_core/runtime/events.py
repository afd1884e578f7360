"""What a child process may say: one JSON object on each line of its output, with the number of the job it is of."""

from __future__ import annotations

import json
from contextlib import suppress


def event_of(line: str) -> dict | None:
    """What one line of a child's output says; None for what no worker writes."""
    with suppress(ValueError, RecursionError):
        event = json.loads(line)
        if not isinstance(event, dict) or type(event.get("job")) is not int:
            return None
        if isinstance(event.get("progress"), dict) or isinstance(event.get("done"), dict):
            return event
        if isinstance(event.get("error"), str) and isinstance(event.get("message"), str):
            return event
    return None
