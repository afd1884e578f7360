"""`spinloop run --redo STAGE[:ITERATION]`: which steps are computed again though their output is there.

What stands in the store stays: another output is kept beside it and said. With `--replace` this run and later ones go
on from the new output. Is not: how a step is computed again (`spin_core/runtime/redo.py`), nor how a work pool is
asked for it (`pools.py`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from spin_core.config.profile import Config
from spin_core.config.stage_table import COMPUTING, ORDER
from spin_core.errors import BadInput
from spin_core.runtime.redo import Redone
from spin_core.runtime.step import Step
from spin_core.store.takes import in_words


@dataclass
class Redo:
    """The steps that were asked for, as (stage, iteration or None for every one), and which of these the run has had;
    `replace`: whether a new output is taken; `done`: title → what came of it; `fresh`: titles that were not there
    before, so that there was nothing to compare."""

    wanted: list[tuple[str, int | None]] = field(default_factory=list)
    replace: bool = False
    met: set[tuple[str, int | None]] = field(default_factory=set)
    done: dict[str, Redone] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)

    def takes(self, step: Step) -> bool:
        """Whether the step is one of them."""
        own = {(stage, t) for stage, t in self.wanted if stage == step.stage and t in (None, step.place.iteration)}
        self.met |= own
        return bool(own)

    def demand(self, config: Config) -> None:
        """Raise BadInput where a new output is to be taken of a step that a run of `config` cannot have: said before
        the run, whose other steps may take hours; and where the run would do it more than once."""
        if self.wanted and config.runtime.approve:
            raise BadInput(
                "--redo: with runtime.approve a run begins anew after each answer, and would compute these steps again "
                "each time; set runtime.approve: false."
            )
        there = {"sft": config.sft or config.control, "harness": config.harness}
        first, last = config.start.iteration, config.iterations - 1
        for stage, t in self.wanted if self.replace else ():
            name = stage if t is None else f"{stage}:{t}"
            if not there.get(stage, True):
                raise BadInput(f"--redo {name}: {config.name} has no section {stage}, so no such step to replace.")
            if t is not None and not first <= t <= last:
                raise BadInput(f"--redo {name}: {config.name} has the iterations {first} to {last}; name one of these.")

    def report(self) -> list[str]:
        """A sentence for each step, and for what no step of the run was."""
        what = "replace" if self.replace else "compare"
        lines = [f"{name}: computed for the first time, so there was nothing to {what}." for name in self.fresh]
        lines += [f"{name}: computed again, {_came_of(made, self.replace)}." for name, made in self.done.items()]
        if same := [stage for stage, _ in self.wanted if self.replace and stage not in COMPUTING]:
            lines.append(
                f"--replace {', '.join(dict.fromkeys(same))}: computes without a model, so its bytes are the same "
                "each time; another output comes of other code or other versions of libraries."
            )
        missed = [stage if t is None else f"{stage}:{t}" for stage, t in self.wanted if (stage, t) not in self.met]
        return lines + [f"--redo {name}: this run has no such step." for name in dict.fromkeys(missed)]


def message(redo: Redo) -> str:
    """What a flow run of a work pool says when it ends, for the run that asks (`answer`): JSON, which a person can read
    too. Steps with the same bytes are a number alone: there may be a thousand."""
    changed = {name: made for name, made in redo.done.items() if made.differing or made.take}
    said = {
        name: {"key": made.record.key, "files": made.differing, "replaced": made.take} for name, made in changed.items()
    }
    return json.dumps(
        {"computed_again": len(redo.done), "first_time": redo.fresh, "otherwise": said}, ensure_ascii=False
    )


def answer(text: str, titles: Collection[str]) -> tuple[list[str], dict[str, tuple[str, list[str], int]]]:
    """What a flow run said that was to compute the steps with these titles again: those that were not there; and title
    → key of the output that runs take from now on, files that came out otherwise, how often it was replaced. All others
    are the same. Raises ValueError where it did not compute each of them: an older spinloop looks them up."""
    said = json.loads(text)
    if not isinstance(said, dict) or said["computed_again"] + len(said["first_time"]) != len(titles):
        raise ValueError(text)
    otherwise = {name: (one["key"], one["files"], one["replaced"]) for name, one in said["otherwise"].items()}
    return said["first_time"], otherwise


def _came_of(made: Redone, replaced: bool) -> str:
    if not made.differing:
        return "the same bytes" + ("; the output stays, as there is nothing to replace" if replaced else "")
    files = f"came out otherwise in {', '.join(made.differing)}"
    if not made.take:
        return f"{files}; the new output is kept beside the first, which stands"
    return f"{files}; every run goes on from the new output from now on ({in_words(made.take)})"


def parse(texts: Sequence[str], replace: bool = False, option: str = "--redo ") -> Redo:
    """`finetune`, or `finetune:1` of iteration 1. Raises BadInput for a stage or iteration that is none (`option` comes
    before it in the sentence), and where nothing is named that is to be replaced."""
    wanted: list[tuple[str, int | None]] = []
    for text in texts:
        stage, colon, t = text.partition(":")
        if stage not in ORDER:
            raise BadInput(f"{option}{text}: there is no such stage; stages are {', '.join(ORDER)}.")
        if colon and not t.isdecimal():
            raise BadInput(f"{option}{text}: write an iteration from 0 behind the colon, for example {stage}:0.")
        wanted.append((stage, int(t) if colon else None))
    if replace and not wanted:
        raise BadInput("--replace: say which step with --redo, for example --redo generate:1 --replace.")
    return Redo(wanted, replace)
