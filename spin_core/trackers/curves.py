"""What a run's steps put on a board: names of curves, and where on the axis each figure stands.

The axis is optimiser steps since the run began: θ_0's SFT, then iteration after iteration, so that their curves follow
each other. What is measured of a model stands at the step that made the model. It is a function of the finished steps
alone, so that a rerun, in which all of them are cached, gives the same curves.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spin_core.config.stage_table import TRAINING
from spin_core.job import Place

Values = dict[str, float]
Item = tuple[int, Values]
"""A place on the axis, and figures by the names of their curves."""
ALLOWED = re.compile(r"[^A-Za-z0-9_./-]")  # what every tracker takes in a name
MEASURED = ("evaluate", "harness")


class Curves:
    """The curves of one run. Its steps may end in threads."""

    def __init__(self) -> None:
        self._made: dict[int, int] = {}  # k → optimiser steps that made θ_k
        self._controls: dict[int, int] = {}  # n → optimiser steps of the control of n iterations, θ_0's too
        self._answers: dict[int, list[float]] = {}  # t → tokens and seconds of its shards
        self._lock = threading.Lock()

    def line(self, stage: str, place: Place, line: Mapping[str, Any]) -> Item:
        """One line of a training's metrics.jsonl, also while it is at work."""
        values = {name: value for name, value in line.items() if name != "step"}
        if place.role == "iteration":
            values["iteration"] = place.iteration
        return self._begun(place) + int(line["step"]), _named(_prefix(stage, place), values)

    def of(self, stage: str, place: Place, facts: Mapping[str, Any], tree: Path) -> Iterator[Item]:
        """All that a finished step has, of its record's facts and its output. Steps come after those that they read.
        Raises OSError, ValueError for a damaged metrics.jsonl."""
        summary = facts.get("summary", {})
        if stage in TRAINING:
            lines = _lines(tree / "metrics.jsonl")
            yield from (self.line(stage, place, line) for line in lines)
            with self._lock:
                self._end(place, self._begun(place) + len(lines))
        elif stage in MEASURED:
            yield self._measured(place), _named(_prefix(stage, place), summary)
        elif stage == "generate" and place.iteration is not None:
            with self._lock:
                shards = self._answers.setdefault(place.iteration, [0.0, 0.0])
                shards[0] += summary.get("tokens", 0)
                shards[1] += facts.get("seconds") or 0.0
        elif stage == "gather" and (done := self._answers.get(place.iteration or 0)) and done[1]:
            speed = {"tokens_per_second": done[0] / done[1], "tokens": done[0]}
            yield self._made.get(place.iteration or 0, 0), _named("generate", speed)

    def _begun(self, place: Place) -> int:
        """Where on the axis a training begins: SFT of θ_0 at 0, a control behind θ_0, iteration t behind θ_t."""
        if place.role == "start":
            return 0
        return self._made.get(0 if place.role == "control" else place.iteration or 0, 0)

    def _end(self, place: Place, at: int) -> None:
        if place.role == "control":
            self._controls[place.iteration or 0] = at
        elif place.model is not None:
            self._made[place.model] = at

    def _measured(self, place: Place) -> int:
        if place.role == "control":
            return self._controls.get(place.iteration or 0, 0)
        return self._made.get(place.model or 0, 0)


def _prefix(stage: str, place: Place) -> str:
    """`finetune`; of the control that stands for two iterations `control-2/sft`."""
    return f"control-{(place.iteration or 0) + 1}/{stage}" if place.role == "control" else stage


def _named(prefix: str, values: Mapping[str, Any]) -> Values:
    """The finite numbers among `values`."""
    numbers = {name: value for name, value in values.items() if type(value) in (int, float) and math.isfinite(value)}
    return {ALLOWED.sub("_", f"{prefix}/{name}"): float(value) for name, value in numbers.items()}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
