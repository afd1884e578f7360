"""The sockets of a process, whichever psutil there is."""

from __future__ import annotations

from typing import Any

import psutil


def sockets(process: psutil.Process) -> list[Any]:
    """Its internet sockets. psutil 5.9 has another name for what 6.0 calls `net_connections`."""
    return (getattr(process, "net_connections", None) or process.connections)(kind="inet")
