"""A step is replaced (`--redo … --replace`), and the process dies, or others do the same at that moment."""

from __future__ import annotations

import os
from pathlib import Path

from spin_core.config.runtime import Runtime
from spin_core.runtime.redo import Redone, replace
from spin_core.runtime.step import KeyedStep, Step, compute, look_up
from spin_core.store import fs
from spin_core.store.store import Record, Store
from tests.faults.fault import LEVEL, Fault
from tests.faults.flow.forks import Here
from tests.faults.store import battery, sampled_stage
from tests.faults.store.battery import folder

R1 = Fault("R1", "the process dies before or after any change to the disk while it replaces a step")
R10 = Fault("R10", "four processes replace one step at once: one replacement", pr=3, night=50, release=200)
STEP = Step(sampled_stage, "", sampled_stage.Config())
FIRST = KeyedStep(STEP, {})
HERE = (Runtime(), Here(lambda event: None), lambda event: None)


def asked(store: Store) -> KeyedStep:
    """The step as a run that begins now asks for it."""
    return KeyedStep(STEP, {}, store.takes.read())


def replaced(store: Store, keyed: KeyedStep) -> Redone:
    with store.using():
        return replace(store, keyed, *HERE)  # type: ignore[arg-type]


def prepared(place: Path) -> Record:
    """A store in which the step has run once."""
    return compute(Store(place), FIRST, *HERE)[0]  # type: ignore[arg-type]


def dying(place: Path, at: int, seen: list[str]) -> None:
    store = Store(place)

    def hook(op: str, path: Path) -> None:
        if len(seen) == at:
            battery.die(path)
        seen.append(op)

    fs.hook = hook
    replaced(store, asked(store))
    fs.hook = None


def test_killed_at_any_change_leaves_the_old_output_or_the_new_one() -> None:
    """Catches a counter that is noted before its output is there (its key would lead nowhere), half a file in takes/, a
    first output that is gone, a replacement whose output is there and that is computed again, and one that can never be
    finished."""
    with folder() as place:
        prepared(place)
        dying(place, -1, seen := [])
    assert seen.count("link after") == 2, "a record, and a file of takes/"
    last = len(seen) - 30  # all that changes a record or takes/
    points = range(len(seen)) if LEVEL != "pr" else [*range(0, last, 4), *range(last, len(seen))]

    def trial(at: int) -> None:
        with folder() as place:
            first = prepared(place)
            assert battery.in_child(lambda: dying(place, at, [])) == battery.KILLED
            assert battery.torn(place) == []
            store = Store(place)
            assert look_up(store, FIRST) == first
            take, standing = asked(store).take, look_up(store, asked(store))
            assert standing is not None and take in (0, 1) and (standing == first) == (take == 0)
            assert take == 0 or (store.root / "takes" / f"{FIRST.key}.1.json").stat().st_size > 100
            left = look_up(store, FIRST.at(1))
            made = replaced(store, asked(store))
            assert made.take == take + 1 and made.differing == ["answers.jsonl"]
            assert take or left is None or made.record == left
            assert look_up(Store(place), asked(store)) == made.record and look_up(store, FIRST) == first
            assert not [*store.root.glob("records/*/*.nondeterministic-*")] and battery.torn(place) == []

    R1.each(points, trial)


def test_run_that_began_before_others_replaced_the_step_takes_what_stands() -> None:
    """Catches a run that replaces by an output which two later runs have replaced already, and says that every run goes
    on from it; and one whose newest output gc has removed and that computes under another number."""
    with folder() as place:
        prepared(place)
        store = Store(place)
        old, once = asked(store), replaced(store, asked(store))
        twice = replaced(store, asked(store))
        made = replaced(store, old)
        assert (once.take, twice.take, made.take) == (1, 2, 2) and made.record == twice.record
        (store.root / "records" / "sampled_stage" / f"{twice.record.key}.json").unlink()
        again = replaced(store, old)
        assert again.take == 2 and again.record.key == twice.record.key and asked(store).take == 2
        assert look_up(store, asked(store)) == again.record


def test_processes_that_replace_at_once_make_one_replacement() -> None:
    """Catches two outputs that each process goes on from alone, a counter that goes to 2 although all of them replaced
    the first output, and a key that both publish to."""

    def trial(_: object) -> None:
        with folder() as place:
            first = prepared(place)
            ready, go = os.pipe(), os.pipe()
            pids = []
            for number in range(4):
                pid = os.fork()
                if pid == 0:
                    status = 1
                    try:
                        store = Store(place)
                        own = asked(store)
                        os.write(ready[1], b".")
                        os.read(go[0], 1)
                        made = replaced(store, own)
                        (place / f"{number}").write_text(f"{made.take} {made.record.digest} {made.differing}")
                        status = 0
                    finally:
                        os._exit(status)
                pids.append(pid)
            for _ in pids:
                os.read(ready[0], 1)
            os.write(go[1], b"....")
            assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
            for end in (*ready, *go):
                os.close(end)
            store = Store(place)
            standing = look_up(store, asked(store))
            assert standing is not None and standing.digest != first.digest
            took = {(place / f"{number}").read_text() for number in range(4)}
            assert took == {f"1 {standing.digest} ['answers.jsonl']"}
            assert len([*(store.root / "takes").iterdir()]) == 1 and len([*store.records()]) == 2

    R10.run(trial)
