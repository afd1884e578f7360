"""A finished run, made as a user makes it, in which nothing may be unpickled and no network used; and the forks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.faults.flow.forks import Forks
from tests.faults.flow.smoke import PROFILE, Smoke, make_smoke, read_smoke
from tests.flows.fixtures import once


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke profile as a file: every stage, one iteration."""
    path = tmp_path_factory.mktemp("profile") / "smoke.yaml"
    path.write_text(yaml.safe_dump(PROFILE))
    return path


@pytest.fixture(scope="session")
def smoke(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """That profile's finished run."""
    return read_smoke(once(tmp_path_factory, "smoke", lambda place: make_smoke(profile, place)))


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    with Forks() as started:
        yield started
