"""A place for a store, and a store in it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_core.store.store import Store
from tests.faults.store.battery import folder


@pytest.fixture
def place() -> Iterator[Path]:
    with folder() as path:
        yield path


@pytest.fixture
def store(place: Path) -> Store:
    return Store(place)
