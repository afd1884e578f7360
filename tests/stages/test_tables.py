"""The plain tables of what a profile can choose, against the choices that its sections take."""

from __future__ import annotations

from typing import get_args

import pytest

from spin_core.config import choices
from spin_core.config.finetune import Finetune
from spin_core.config.generate import Generate
from spin_core.config.harness import Harness
from spin_core.engines.harness.backends import BACKENDS
from spin_core.engines.table import ENGINES
from spin_core.training.objectives import LOSSES


@pytest.mark.parametrize(
    ("table", "section", "field", "choice"),
    [
        (ENGINES, Generate, "engine", choices.EngineName),
        (BACKENDS, Harness, "backend", choices.HarnessBackend),
        (LOSSES, Finetune, "loss", choices.Loss),
    ],
    ids=["engines", "harness back ends", "losses"],
)
def test_table_has_just_the_names_that_a_profile_can_choose(table, section, field, choice):
    """Catches an engine, back end or loss that no profile can name, and a name with nothing behind it."""
    assert tuple(table) == get_args(choice) == get_args(section.model_fields[field].annotation)


@pytest.mark.parametrize("engine", [*ENGINES.values(), *(backend.engine for backend in BACKENDS.values())])
def test_every_engine_has_the_members_of_the_protocol(engine):
    """Catches a member that a new engine's module lacks (mypy says the same, with its types)."""
    from spin_core.engines import Engine

    members = {name for name in (*vars(Engine), *Engine.__annotations__) if not name.startswith("_")}
    assert len(members) > 8 and all(hasattr(engine, name) for name in members)
