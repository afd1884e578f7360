"""A step that is computed again on purpose, though its output is there: to compare (`recompute`), or to go on from the
new output (`replace`). Is not: which steps a person asked for (tasks/runner/redo.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spin_core.config.runtime import ROUNDING, Runtime
from spin_core.config.stage_table import COMPUTING
from spin_core.errors import StageFailed
from spin_core.runtime import gpus
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, look_up, make, provenance
from spin_core.store.digest import FileEntry, manifest
from spin_core.store.store import Record, Store

Send = Callable[[dict], None]


@dataclass(frozen=True)
class Redone:
    """A step after it was computed again. `record`: of the output that runs take from now on; `differing`: the files
    that came out otherwise than before; `take`: how often it was replaced by now, 0 where that is not what was asked
    for or nothing differs."""

    record: Record
    differing: list[str]
    take: int = 0


def recompute(store: Store, keyed: KeyedStep, runtime: Runtime, children: Children, send: Send) -> Redone:
    """Run a step again whose output is there, which stands. Where another one comes out it is kept beside it
    (records/STAGE/KEY.nondeterministic-….json). Raises StageFailed where there is none."""
    store.check_writable()
    keyed = _standing(store, keyed)
    step, key = keyed.step, keyed.key
    with store.lock(step.stage, key, wait=lambda s, holder: send({"waiting": s, "holder": holder})):
        record = _demand(store, keyed)
        store.drop_scratch(step.stage, key)  # nothing of another try
        out, made = make(store, keyed, runtime, children, send)
        now = manifest(out)
        store.publish(keyed.payload, out, made, key)
        store.drop_scratch(step.stage, key)
        return Redone(record, differing(record.files, now))


def replace(store: Store, keyed: KeyedStep, runtime: Runtime, children: Children, send: Send) -> Redone:
    """Run a step again whose output is there, and take the new output where it is another: it is published under a key
    of its own, which every later run asks for; nothing is overwritten. Where the bytes are the same nothing changes.
    Raises StageFailed where there is no output yet.

    A replacement that was killed goes on where it was: with its checkpoints, or with its output where only the note of
    it is missing. Of two at once the second takes the output of the first, as does a run that began before the step was
    replaced by another.
    """
    store.check_writable()
    keyed = _standing(store, keyed)
    noted = store.takes.read().get(keyed.first_key, 0)
    again = keyed.at(max(keyed.take + 1, noted))
    step, key = again.step, again.key
    with store.lock(step.stage, key, wait=lambda s, holder: send({"waiting": s, "holder": holder})):
        before = _demand(store, keyed)
        record = look_up(store, again)
        if record is None:
            out, made = make(store, again, runtime, children, send)
            now = manifest(out)
            if noted < again.take and not differing(before.files, now):
                store.discard(out)
                store.drop_scratch(step.stage, key)
                return Redone(before, [])
            record = store.publish(again.payload, out, made, key)
            store.drop_scratch(step.stage, key)
        # Only now: a key that runs are sent to has a record.
        store.takes.write(step.stage, again.first_key, again.take, key)
        return Redone(record, differing(before.files, record.files), again.take)


def promised(record: Record, runtime: Runtime) -> bool:
    """Whether a step gives the same bytes if it is computed again here with `runtime`: with the same versions of
    libraries; where it computes with a model also on a CPU, then and now, of such a machine, and with the settings of
    the runtime that rounding hangs on (docs/store.md)."""
    then, now = record.facts.get("provenance") or {}, provenance()
    made_by = [{**(of.get("versions") or {}), "prefect": "", "python": of.get("python")} for of in (then, now)]
    if made_by[0] != made_by[1]:
        return False
    if record.stage not in COMPUTING:
        return True
    rounding = record.facts.get("runtime")
    if not isinstance(rounding, dict) or then.get("machine") != now["machine"]:
        return False
    same = runtime.model_dump(mode="json", include={*ROUNDING}, exclude_defaults=True) | {"device": "cpu"}
    on_cpu = (record.facts.get("device") or {}).get("gpus") == 0 == gpus.held(record.stage, runtime)["gpus"]
    return on_cpu and rounding | {"device": "cpu"} == same


def differing(then: list[FileEntry], now: list[FileEntry]) -> list[str]:
    """Files that only one of two outputs has, or that have other bytes, by name."""
    old, new = ({file["path"]: file["sha256"] for file in files} for files in (then, now))
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def _standing(store: Store, keyed: KeyedStep) -> KeyedStep:
    """The step as its output was computed: with or without the inputs that only save it work."""
    record = look_up(store, keyed)
    return keyed.bare if record is not None and keyed.bare and record.key == keyed.bare.key else keyed


def _demand(store: Store, keyed: KeyedStep) -> Record:
    record = look_up(store, keyed)
    if record is None:
        raise StageFailed(f"{keyed.step.title}: there is no output to compare with; run without --redo first.")
    return record
