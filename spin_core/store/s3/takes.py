"""takes/ on object storage: which steps were replaced, and how often. As in a folder (`spin_core/store/takes.py`)."""

from __future__ import annotations

from pathlib import Path

from spin_core.store import takes
from spin_core.store.s3.objects import Objects


class RemoteTakes(takes.Takes):
    """One listing says all; an object is created once, and two machines that do so write the same."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(Path())
        self._objects = objects

    def names(self) -> list[str]:
        """As in `Takes`, of the service."""
        below = f"{takes.FOLDER}/"
        return [stat.key.removeprefix(below) for stat in self._objects.listed(below)]

    def _create(self, name: str, data: bytes) -> None:
        self._objects.put_once(f"{takes.FOLDER}/{name}", data)
