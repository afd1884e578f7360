"""`spinloop run --redo STAGE[:ITERATION]`: which steps are computed again though their output is there.

What stands in the store stays: another output is kept beside it and said. Is not: a way to take the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from spin_core.config.stage_table import ORDER
from spin_core.errors import BadInput
from spin_core.runtime.step import Step


@dataclass
class Redo:
    """The steps that were asked for, as (stage, iteration or None for every one), and which of these the run has had;
    `done`: title → files that came out otherwise; `fresh`: titles that were not there before, so that there was nothing
    to compare."""

    wanted: list[tuple[str, int | None]] = field(default_factory=list)
    met: set[tuple[str, int | None]] = field(default_factory=set)
    done: dict[str, list[str]] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)

    def takes(self, step: Step) -> bool:
        """Whether the step is one of them."""
        own = {(stage, t) for stage, t in self.wanted if stage == step.stage and t in (None, step.place.iteration)}
        self.met |= own
        return bool(own)

    def report(self) -> list[str]:
        """A sentence for each step, and for what no step of the run was."""
        lines = [f"{name}: computed for the first time, so there was nothing to compare." for name in self.fresh]
        for name, files in self.done.items():
            what = f"came out otherwise in {', '.join(files)}; the new output is kept beside the first, which stands"
            lines.append(f"{name}: computed again, {what if files else 'the same bytes'}.")
        missed = [stage if t is None else f"{stage}:{t}" for stage, t in self.wanted if (stage, t) not in self.met]
        return lines + [f"--redo {name}: this run has no such step." for name in dict.fromkeys(missed)]


def parse(texts: Sequence[str]) -> Redo:
    """`finetune`, or `finetune:1` of iteration 1. Raises BadInput for a stage or iteration that is none."""
    wanted: list[tuple[str, int | None]] = []
    for text in texts:
        stage, colon, t = text.partition(":")
        if stage not in ORDER:
            raise BadInput(f"--redo {text}: there is no such stage; stages are {', '.join(ORDER)}.")
        if colon and not t.isdecimal():
            raise BadInput(f"--redo {text}: write an iteration from 0 behind the colon, for example {stage}:0.")
        wanted.append((stage, int(t) if colon else None))
    return Redo(wanted)
