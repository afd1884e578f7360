"""Stage processes that outlive a run, for the next one of the same test process: a start takes 5 s of a core.

The processes and their protocol are the product's own; what differs is that a run which ended well hands its idle
process on where the product ends it. The next run gets one only if environment and folder are what they were at its
start. Tests of how processes start, end or are counted do not use this.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spin_core.runtime import child
from spin_core.runtime.child import Child, Children

MOST = 2
"""Idle processes that are kept, 0.5 GB each."""
IDLE: list[Child] = []
PLACES: dict[Child, tuple[str, dict[str, str]]] = {}
"""Folder and environment at the start of each process that may be handed on."""

_end = Children.__exit__


def _place() -> tuple[str, dict[str, str]]:
    return os.getcwd(), {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _start(python: str = sys.executable, gpus: str = "", launch: Any = None) -> Child:
    if python != sys.executable or gpus or launch is not None:
        return Child(python, gpus, launch)
    place = _place()
    for one in IDLE:
        if PLACES[one] == place:
            IDLE.remove(one)
            if one.process.poll() is None:
                one.last.clear()
                return one
    one = Child()
    PLACES[one] = place
    return one


def _hand_on(self: Children, *error: object) -> None:
    for slot in self._slots:
        one = slot.child
        if one is not None and one in PLACES and not slot.jobs and one.process.poll() is None:
            IDLE.append(one)
            slot.child = None
    while len(IDLE) > MOST:
        IDLE.pop(0).kill()
    _end(self, *error)


@contextmanager
def shared() -> Iterator[None]:
    """While it is open, runs in this process hand their idle stage processes on."""
    child.Child, Children.__exit__ = _start, _hand_on  # type: ignore[assignment,misc,method-assign]
    try:
        yield
    finally:
        child.Child, Children.__exit__ = Child, _end  # type: ignore[misc,method-assign]


@atexit.register
def _end_all() -> None:
    while IDLE:
        IDLE.pop().kill()
