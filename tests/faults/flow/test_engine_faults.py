"""The process that a stage runs in is out of memory, ends, hangs, or writes rubbish where its answers go."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from spin_core.config.runtime import Runtime
from spin_core.errors import ChildDied, StageFailed
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, Step, compute, look_up
from spin_core.store.store import Store
from tests.faults.fault import Fault
from tests.faults.flow import bad_stage
from tests.faults.flow.cases import assert_clean, empty_folder, torn
from tests.faults.flow.storm import MARK, marked

TIMEOUT = 4
LINES = 45  # of log, of which the last 20 are shown
# What is reported, and whether another try in a new process is worth it.
MESSAGES: dict[str, tuple[type[StageFailed], str]] = {
    "memory": (StageFailed, "bad_stage: out of memory; lower "),
    "killed": (ChildDied, "killed by SIGKILL (often: out of memory)"),
    "aborted": (ChildDied, "killed by SIGABRT"),
    "exit code": (ChildDied, "exit code 3"),
    "sys.exit": (StageFailed, "bad_stage: SystemExit: 3"),
    "hang": (StageFailed, f"bad_stage: ended after runtime.stage_timeout = {TIMEOUT} s."),
    "closed": (ChildDied, "closed its output without an answer"),
    **{f"garbage: {name}": (ChildDied, "wrote what is no answer") for name in bad_stage.GARBAGE},
}


def step(do: str, lines: int = 0) -> Step:
    return Step(bad_stage, "", bad_stage.Config(do=do, lines=lines))


def test_engine_that_fails_in_any_way_publishes_nothing_and_leaves_nothing(monkeypatch) -> None:
    """Catches half an output that is published, an error without the process's last lines, a time-out that waits for
    the process to agree, a parent that takes rubbish for an answer or dies of it, and a process that outlives it."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)

    def trial(do: str) -> None:
        kind, message = MESSAGES[do]
        with empty_folder() as place, Children(1) as children:
            store = Store(place)
            with store.using():
                timeout = TIMEOUT if do == "hang" else 60
                with pytest.raises(StageFailed) as failed:
                    compute(
                        store,
                        KeyedStep(step(do, LINES), {}),
                        Runtime(stage_timeout=timeout),
                        children,
                        lambda event: None,
                    )
                assert type(failed.value) is kind and message in str(failed.value), failed.value
                if kind is ChildDied:
                    shown = [line.removeprefix("  | ") for line in str(failed.value).splitlines()[1:]]
                    assert shown == [f"line {n}" for n in range(LINES - 20, LINES)], shown
                assert look_up(store, KeyedStep(step(do, LINES), {})) is None
                assert torn(place) == [] and not list((store.root / "tmp").iterdir())
                # The same children serve the next job.
                record, _ = compute(store, KeyedStep(step("well"), {}), Runtime(), children, lambda event: None)
                assert record.facts["summary"] == {"well": True}
            assert _alone(mark, 1), "a process was left"
            assert_clean(place)

    Fault("R28", "the engine's process: no memory, ends, hangs, writes rubbish").each(MESSAGES, trial)
    assert _alone(mark, 0), "a process outlives its children"


def _alone(mark: str, workers: int) -> bool:
    """Whether nothing else is at work than so many workers, with their guards."""
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(mark) if pid != os.getpid()]
    return len(commands) <= 2 * workers and all(b"spin_core.runtime.worker" in line for line in commands)
