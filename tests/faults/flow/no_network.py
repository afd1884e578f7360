"""Keeps this process off every network but loopback, for good: `install`. Child processes are not kept off."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
MESSAGE = "tests use no network"
_installed: list[bool] = []


def install() -> None:
    """An audit hook cannot be taken away again."""
    if not _installed:
        _installed.append(True)
        sys.addaudithook(_hook)


def installed() -> bool:
    return bool(_installed)


def _hook(event: str, args: tuple) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
        _check(args[1][0])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        _check(args[0])


def _check(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return
    try:
        if ipaddress.ip_address(name.partition("%")[0]).is_loopback or name == "0.0.0.0":
            return
    except ValueError:
        pass
    raise PermissionError(f"{MESSAGE}: {name}")
