"""Before a run: what it would do (`plan`), and whether it can begin (`check`)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from flows.spin import dag, sources
from spin_core import gpus
from spin_core.child import Children
from spin_core.config import Config
from spin_core.engines import vllm_env
from spin_core.store.store import NAME, Store
from tasks.ledger import Entry
from tasks.planning import Planner
from tasks.run import Run


def plan(config: Config, store: str, base_dir: Path) -> tuple[list[Entry], list[str]]:
    """What a run would do: its ledger, and what the store has to say of itself. Computes nothing but the rows, where
    the dataset is another than before; nothing is written to the store."""
    with TemporaryDirectory(prefix="spinloop-plan-") as folder, Children(1) as children:
        drafts = Store(Path(folder))
        artifacts = Store(Path(store), create=False) if (Path(store) / NAME).exists() else drafts
        run = Run(config, artifacts, children, base_dir, Planner(drafts))
        dag(run)
    return run.ledger, artifacts.notes


def check(config: Config, store: str, base_dir: Path) -> None:
    """Raise what is wrong with the store, the sources or the engines before anything is waited for."""
    if any(config.at(t).generate.engine == "vllm" for t in range(config.iterations)):
        vllm_env.interpreter(config.runtime.vllm_python)
        gpus.check_unshared(config.runtime, len(gpus.visible()))
    gpus.groups(config.runtime, gpus.visible())
    sources(Run(config, Store(Path(store)), Children(0), base_dir, Planner()))
