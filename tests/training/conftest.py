"""Fixtures of the training room."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import (
    DIGESTS,
    GOLDEN,
    copy_model,
    finetune_config,
    job_at,
    made_up_pairs,
    pairs_tree,
    score_config,
    scored,
)

from spin_core.modeling.logprobs import Policy
from spin_core.modeling.packing import Batch
from spin_core.stages import finetune


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The golden numbers were made with one thread, and a tiny model is quicker so."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Any]:
    return lambda name: json.loads((GOLDEN / name).read_text())


@pytest.fixture
def policy_calls() -> Iterator[list[Batch]]:
    """The batch of every forward pass of a policy, in order."""
    calls: list[Batch] = []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: calls.append(args[0]) if isinstance(module, Policy) and len(args) == 1 else None
    )
    yield calls
    hook.remove()


@pytest.fixture(scope="session")
def theta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory to read; tests that change one copy it."""
    return copy_model(tmp_path_factory.mktemp("theta") / "model")


@pytest.fixture(scope="session")
def spin(tmp_path_factory: pytest.TempPathFactory, theta: Path) -> Callable[..., tuple[dict, Path]]:
    """Finetune of ten made-up pairs: `spin(**config) -> (summary, out)`. A run is made once; `again` makes another."""
    root = tmp_path_factory.mktemp("spin")
    known: dict[str, Any] = {}

    def once(key: str, make: Callable[[Path], Any]) -> Any:
        if key not in known:
            known[key] = make(root / f"run{len(known)}")
        return known[key]

    def run(again: int = 0, runtime: dict | None = None, model: Path = theta, **changes: Any) -> tuple[dict, Path]:
        config = finetune_config(**changes)
        settings = score_config(config)
        length = config.finetune.max_length if config.finetune.collation == "reference" else 0
        train, test = made_up_pairs(10), made_up_pairs(3, 100)
        tree = once(f"pairs {length}", lambda path: pairs_tree(path, train, test, length))
        logps = once(f"{model} {settings!r}", lambda path: scored(path, model, tree, config))

        def make(path: Path) -> tuple[dict, Path]:
            job = job_at(path, DIGESTS, **(runtime or {}))
            return finetune.run({"model": model, "pairs": [tree], "logps": [logps]}, config, job), job.out

        return once(f"{model} {config!r} {runtime} {again}", make)

    return run
