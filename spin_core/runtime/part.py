"""What a stage says of processes: of which kind it needs one, and which part of it runs in another kind's before."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from spin_core.config.base import Section


class Part(NamedTuple):
    """A module with `run` and `environment`, as a stage has, and its config. It reads the stage's inputs and writes to
    the stage's scratch; it has no key and no record."""

    module: ModuleType
    config: Section


class Own(NamedTuple):
    """A kind of process by its name, and its interpreter; with `keep`, the name of an engine's module, it is kept for
    the next model (`child.Children`)."""

    process: str
    python: str
    keep: str = ""
