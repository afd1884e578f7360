"""The cost sheet of a plan: what is known of model, rows and GPUs here is handed to `spin_core.estimate`.

Is not: the estimate itself, and not the ledger; a stage whose steps are all cached costs nothing and has no line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_core.config.profile import Config
from spin_core.estimate import fit, hardware, sheet, text, todo
from spin_core.estimate.needs import NEEDS, Setting
from spin_core.estimate.places import sizes
from spin_core.job import Entry
from tasks.runner.run import Run

SMALL = 1_000_000_000
"""Weights below which a model is taken to run here where no GPU is seen."""


@dataclass(frozen=True)
class Costs:
    """The sheet as `lines` of text, empty where there is none; `misfit`: the sentence of what cannot fit; `certain`:
    the GPUs were seen or named, so that it is a refusal."""

    lines: list[str]
    misfit: str = ""
    certain: bool = False


def rows(run: Run) -> todo.Data | None:
    """What is known of the rows of a planned run; None where they are still to be made."""
    entry = next((one for one in run.ledger if one.stage == "reformat"), None)
    tree = run.planning.rows if run.planning else None
    if entry is None or tree is None:
        return None
    counts = entry.summary
    if "train_rows" not in counts:
        record = run.store.record("reformat", entry.key)
        counts = record.facts.get("summary", {}) if record else {}
    train, test = counts.get("train_rows"), counts.get("test_rows")
    return todo.measured(tree, train, test) if isinstance(train, int) and isinstance(test, int) else None


def costs(
    config: Config, base_dir: Path, ledger: Sequence[Entry] | None, data: todo.Data | None, gpu: str = "", gpus: int = 0
) -> Costs:  # fmt: skip
    """The sheet of a planned run; `ledger` None is one of which nothing is known to be cached, `data` None assumes the
    rows. Raises BadInput for an unknown `gpu`."""
    setting = setting_of(config, base_dir, data, gpu, gpus)
    if isinstance(setting, str):
        return Costs([setting])
    counted = todo.everything(config, setting.data) if ledger is None else todo.of_ledger(ledger, setting.data)
    shown = sheet.lines(setting, config, counted)
    if not shown:
        return Costs([])
    lines = [*text.table(shown), *text.basis(setting, config, ledger is None)]
    misfit = fit.misfit(setting, config, [line.stage for line in shown])
    return Costs(lines, misfit, setting.hardware.certain)


def setting_of(config: Config, base_dir: Path, data: todo.Data | None, gpu: str = "", gpus: int = 0) -> Setting | str:
    """What an estimate is made with, or in one sentence why there is none."""
    model = sizes(config.model.path, config.model.revision, base_dir)
    if isinstance(model, str):
        hardware.choose(gpu, gpus, True)
        return model
    device = config.runtime.device
    chosen = hardware.choose(gpu, gpus, model.weights < SMALL) if gpu or device != "cpu" else hardware.cpu()
    return Setting(model, data or todo.assumed(config), chosen)


def refusal(config: Config, base_dir: Path, pool: str, missing: Collection[str] = tuple(NEEDS)) -> str:
    """Empty, or why the GPUs that the driver shows are too small for one of the stages `missing` that runs here."""
    setting = setting_of(config, base_dir, None)
    if isinstance(setting, str) or not setting.hardware.certain:
        return ""
    there = {"sft": config.sft or config.control, "harness": config.harness}
    here = [name for name in NEEDS if name in missing and there.get(name, True)]
    return fit.misfit(setting, config, [name for name in here if config.runtime.pools.of(name, pool) == "here"])
