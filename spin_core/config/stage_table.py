"""Every stage in the order of the DAG, and what other packages need to know of it without importing it.

A stage is added with one line here, its module in `spin_core/stages/` and its task in `tasks/`. Is not: what a stage
computes or how it is keyed; renaming a field here changes no key.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class StageLine(NamedTuple):
    """One stage. The order of the lines is that of cost tables."""

    name: str
    makes: Literal["", "rows", "model", "answers", "pairs"] = ""
    """What later steps or other runs take from it; its lineage is drawn."""
    computes: bool = False
    """With a model: on other hardware, and on a GPU each time, its bytes may differ (docs/store.md)."""
    processes: bool = False
    """Whether several processes can share it (`runtime.compute`)."""
    trains: bool = False
    """Training leaves an optimiser's parts in the libraries' hands: its processes are not used again."""
    event: Literal["", "dataset", "model"] = ""
    """The `spinloop.<event>.created` that Prefect's automations see of its new outputs."""


STAGES = (
    StageLine("demo_rows", makes="rows"),
    StageLine("docstring_rows", makes="rows"),
    StageLine("demo_model", makes="model"),
    StageLine("reformat", makes="rows", event="dataset"),
    StageLine("import_model", makes="model"),
    StageLine("import_pairs", makes="pairs"),
    StageLine("tokenize"),
    StageLine("sft", makes="model", computes=True, processes=True, trains=True, event="model"),
    StageLine("generate", makes="answers", computes=True, processes=True),
    StageLine("gather", makes="pairs"),
    StageLine("score", computes=True, processes=True),
    StageLine("finetune", makes="model", computes=True, processes=True, trains=True, event="model"),
    StageLine("evaluate", computes=True, processes=True),
    StageLine("harness", computes=True),
    StageLine("gate"),
    StageLine("report"),
)
ORDER = tuple(stage.name for stage in STAGES)
COMPUTING = tuple(stage.name for stage in STAGES if stage.computes)
TRAINING = tuple(stage.name for stage in STAGES if stage.trains)
SHARED = tuple(stage.name for stage in STAGES if stage.processes)
"""Stages that several processes can share, where they run under our interpreter (vLLM divides its work itself)."""
EVENTS = {stage.name: stage.event for stage in STAGES if stage.event}
DRAWN = tuple(stage.name for stage in STAGES if stage.makes)


def makers(of: str) -> tuple[str, ...]:
    """The stages that make `model`, `pairs`, …"""
    return tuple(stage.name for stage in STAGES if stage.makes == of)
