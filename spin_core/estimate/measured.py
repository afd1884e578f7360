"""What a proof on a GPU measured of the cost sheet: how far time and memory of a stage were from the estimate
(`measured.yaml`, which `make gpu-proof` writes), by card, date and size of the model.

Is not: a model of utilisation. A small model is far below the share of the peak that a large one reaches, so of several
measurements on a card that of the nearest size is taken; where there is none an estimate stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from spin_core.config import yaml_reader
from spin_core.errors import BadInput

KNOWN = Path(__file__).with_name("measured.yaml")
STAGES = ("generate", "score", "finetune", "evaluate")
"""Those that are measured: generate with the transformers engine, all of them in one process on one GPU."""


@dataclass(frozen=True)
class Correction:
    """By what a stage's estimate on a card is multiplied, and whose measurement that is. `memory`: of the tensors."""

    card: str
    date: str
    weights: int
    time: float
    memory: float


def nearest(card: str, stage: str, weights: int, path: Path | None = None) -> Correction | None:
    """The correction of a stage on a card for a model of so many weights, of `measured.yaml` or another such file; None
    where there is none. Raises BadInput where the file is not as its head says."""
    there = [one for name, one in _corrections(path or KNOWN) if name == stage and one.card == card]
    return min(there, key=lambda one: abs(math.log(one.weights / weights)), default=None)


@cache
def _corrections(path: Path) -> list[tuple[str, Correction]]:
    made = []
    for card, measurements in read(path).items():
        for line in measurements:
            try:
                date, weights = str(line["date"]), int(line["weights"])
                for stage in STAGES:
                    if stage in line:
                        time, memory = map(float, line[stage])
                        if not (weights > 0 and all(0 < factor < math.inf for factor in (time, memory))):
                            raise ValueError(stage)
                        made.append((stage, Correction(card, date, weights, time, memory)))
            except (KeyError, TypeError, ValueError):
                raise BadInput(
                    f"{path}: {card}: a measurement has a date, weights and [time, memory] of stages, not {line}; run "
                    "`make gpu-proof` again, or take the line out."
                ) from None
    return made


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Card → its measurements. Raises BadInput where the file is no mapping of lists."""
    content = yaml_reader.read_file(path)
    if not isinstance(content, dict) or not all(isinstance(lines, list) for lines in content.values()):
        raise BadInput(f"{path}: it has to be a mapping of cards to lists of measurements.")
    return content


def added(
    card: str, date: str, weights: int, factors: Mapping[str, tuple[float, float]], path: Path = KNOWN
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """The measurements of the file with one more, which takes the place of an older one of this card and size."""
    line: dict[str, Any] = {"date": date, "weights": weights}
    line |= {stage: [round(factor, 3) for factor in both] for stage, both in factors.items()}
    known = read(path)
    return known | {card: [*(one for one in known.get(card, []) if one.get("weights") != weights), line]}


def write(measurements: Mapping[str, Iterable[Mapping[str, Any]]], path: Path) -> None:
    """A file in the place of `measured.yaml`, with its head."""
    head = "".join(f"{line}\n" for line in KNOWN.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    body = yaml.safe_dump(dict(measurements), default_flow_style=None, sort_keys=False, allow_unicode=True, width=120)
    path.write_text(head + body, encoding="utf-8")
