"""One step of the DAG: a stage, its config and its inputs; how it is looked up, and how it is computed when it is not
there.

This is the same for whoever runs it: Prefect task, test, or worker. It knows the store and the child processes, not
the order of steps.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from types import ModuleType

from spin_core.config.base import Section
from spin_core.config.runtime import ROUNDING, Runtime
from spin_core.config.stage_table import TRAINING
from spin_core.errors import StageFailed
from spin_core.job import NOWHERE, Place, title
from spin_core.runtime import gpus, launch
from spin_core.runtime.child import Children
from spin_core.sources import resolve
from spin_core.sources.resolve import Ref, RefInputs
from spin_core.store import keys
from spin_core.store.code import code_digest
from spin_core.store.store import Record, Store

SHARE = 2  # jobs in one engine: while the last answers of one shard end, the next shard's are at work
PACKAGES = ("torch", "transformers", "accelerate", "datasets", "pyarrow", "prefect", "numpy")


_code_digest = cache(code_digest)
_CODE = threading.Lock()


def _code(module: str) -> str:
    """The digest of a stage's code as it was at the first call: what runs is what was imported then. Parsing its
    modules takes 0.2 s; one thread does it: forty with an empty cache took 8 s of a run with 300 cached shards."""
    with _CODE:
        return _code_digest(module)


@dataclass(frozen=True)
class Step:
    """A stage with its config. Neither `label` (for people: `iter 1, shard 3/8`) nor `place` is in its key."""

    module: ModuleType
    label: str
    config: Section
    place: Place = NOWHERE

    @property
    def stage(self) -> str:
        return str(self.module.NAME)

    @property
    def title(self) -> str:
        return title(self.stage, self.label)

    def payload(self, inputs: RefInputs) -> keys.KeyPayload:
        """What the key is the hash of: stage, VERSION, config and the content digests of the inputs."""
        return keys.payload(self.stage, self.module.VERSION, keys.config_payload(self.config), _digests(inputs))


@dataclass(frozen=True)
class KeyedStep:
    """A step with what it reads, so with its key, which is made once: it takes 1 ms, more for hundreds of inputs.
    `takes`: which steps of the store were replaced, as the run read it when it began (`Takes.read`)."""

    step: Step
    inputs: RefInputs
    takes: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def take(self) -> int:
        """How often the step was replaced on purpose."""
        return self.takes.get(self.first_key, 0) if self.takes else 0

    @cached_property
    def payload(self) -> keys.KeyPayload:
        """What the key is the hash of."""
        return keys.with_take(self._first, self.take)

    @cached_property
    def key(self) -> str:
        """Stage, VERSION, config, inputs, and how often it was replaced, as 64 hexadecimal digits."""
        return keys.key_of(self.payload) if self.take else self.first_key

    @cached_property
    def first_key(self) -> str:
        """The key of the step's first output."""
        return keys.key_of(self._first)

    @cached_property
    def _first(self) -> keys.KeyPayload:
        return self.step.payload(self.inputs)

    @cached_property
    def bare(self) -> KeyedStep | None:
        """The same step without the inputs that only save it work (the stage's WORK_SAVING); None where it has none,
        and where it was replaced: what was computed without them before is what was replaced."""
        saved = getattr(self.step.module, "WORK_SAVING", ())
        reads = {name: value for name, value in self.inputs.items() if name not in saved}
        return KeyedStep(self.step, reads, self.takes) if len(reads) < len(self.inputs) and not self.take else None

    def at(self, take: int) -> KeyedStep:
        """The same step after it was replaced so often."""
        return KeyedStep(self.step, self.inputs, {self.first_key: take})


def in_words(summary: Mapping[str, object]) -> str:
    """A stage's summary on one line of a log: `loss/last 0.2439, steps 8, rejected (too long 2, empty 1)`."""
    return ", ".join(f"{name}{_value(value)}" for name, value in summary.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping | list | tuple):
        listed = in_words(value) if isinstance(value, Mapping) else "; ".join(_value(one).strip() for one in value)
        return f" ({listed})" if value else " none"
    return f" {value:.4g}" if isinstance(value, float) else f" {value}"


def look_up(store: Store, keyed: KeyedStep) -> Record | None:
    """The verified record of the step, or None; where it has inputs that only save it work, also one that was computed
    without them. If other code computed it, a line is left in `store.notes`."""
    step = keyed.step
    record = store.lookup(step.stage, keyed.key)
    if record is None and keyed.bare:
        return look_up(store, keyed.bare)
    if record and record.facts.get("code") not in (None, _code(step.module.__name__)):
        store.note_once(
            f"{step.stage}: results that other code than today's computed, of the same VERSION {step.module.VERSION}, "
            "are used as they are."
        )
    return record


def compute(
    store: Store, keyed: KeyedStep, runtime: Runtime, children: Children, send: Callable[[dict], None]
) -> tuple[Record, bool]:
    """Run the step and publish it; the record, and whether another process had published it while we waited for the
    lock."""
    step, key = keyed.step, keyed.key
    store.check_writable()
    with store.lock(step.stage, key, wait=lambda s, holder: send({"waiting": s, "holder": holder})):
        if record := look_up(store, keyed):
            return record, True
        out, made = make(store, keyed, runtime, children, send)
        record = store.publish(keyed.payload, out, made, key)
        store.drop_scratch(step.stage, key)
        return record, False


def make(
    store: Store, keyed: KeyedStep, runtime: Runtime, children: Children, send: Callable[[dict], None]
) -> tuple[Path, dict]:
    """The folder that the stage wrote, to be published, and the facts of its making."""
    step, inputs = keyed.step, keyed.inputs
    place = environment(step, runtime, _digests(inputs))
    scratch = store.scratch(step.stage, keyed.key)
    out = store.new_tree()
    spec = {
        "stage": step.stage,
        "module": step.module.__name__,
        "config": step.config.model_dump(mode="json"),
        "inputs": {k: _each(v, lambda r: str(r.locate(store))) for k, v in inputs.items()},
        "digests": _digests(inputs),
        "runtime": runtime.model_dump(),
        "out": str(out),
        "scratch": str(scratch),
    }
    # Meanwhile, in a thread: to read the stage's code and ask git is 0.2 s, once per process and stage.
    threading.Thread(target=facts, args=[step, {}, 0.0], daemon=True).start()
    try:
        before, waited = _elsewhere(step, spec, runtime, children, send)
        summary, seconds = children.run(spec | place, send, runtime.stage_timeout)
        _sources_unchanged(inputs)
        made = facts(step, summary | before, round(seconds + waited, 3)) | _downloaded(inputs)
        made["device"] = gpus.held(step.stage, runtime, place.get("share", 1), "together" in place)
        made["runtime"] = runtime.model_dump(mode="json", include={*ROUNDING}, exclude_defaults=True)
    except BaseException:
        store.discard(out)
        raise
    return out, made


def _elsewhere(
    step: Step, spec: dict, runtime: Runtime, children: Children, send: Callable[[dict], None]
) -> tuple[dict, float]:
    """The part of a stage that a process of another kind computes first (a stage's `elsewhere(config, runtime)`), and
    writes to the stage's scratch: its summary and seconds; nothing where the stage has none."""
    choose = getattr(step.module, "elsewhere", None)
    part = choose(step.config, runtime) if choose else None
    if part is None:
        return {}, 0.0
    own = {"module": part.module.__name__, "config": part.config.model_dump(mode="json"), "out": spec["scratch"]}
    place = environment(Step(part.module, step.label, part.config), runtime, spec["digests"])
    return children.run(spec | own | place, send, runtime.stage_timeout)


def environment(step: Step, runtime: Runtime, digests: Mapping[str, object]) -> dict:
    """Which child process the step needs (`child.Children`). A stage's `environment(config, runtime)` may give a kind
    of process and another interpreter (`part.Own`); a process of that serves one model at a time. Raises BadInput where
    there is no such interpreter."""
    choose = getattr(step.module, "environment", None)
    own = choose(step.config, runtime) if choose else None
    if own is None:
        # Training leaves an optimiser's parts in the libraries' hands: its processes are not used again.
        once = f" {uuid.uuid4().hex}" if step.stage in TRAINING else ""
        if not launch.wanted(step.stage, runtime):
            return {"process": f"alone{once}"} if once and runtime.compute.sharding != "none" else {}
        return {"process": f"together{once}", "together": runtime.model_dump()}
    keep = {"keep": own.keep} if own.keep and runtime.keep_engine else {}
    return {"process": f"{own.process} {digests['model']}", "python": own.python, "share": SHARE, **keep}


def facts(step: Step, summary: dict, seconds: float) -> dict:
    """What is kept about a computation beside its output: nothing of it is in the key."""
    return {
        "summary": summary,
        "seconds": seconds,
        "label": step.label,
        "place": step.place.as_json(),
        "code": _code(step.module.__name__),
        "provenance": provenance(),
    }


@cache
def provenance() -> dict:
    """Versions, commit and hardware of this process. No host name, user, path or environment variable."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": {"system": platform.system(), "arch": platform.machine(), "cpus": os.cpu_count()},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "-uno")),
    }


def _git(*command: str) -> str | None:
    """What git says of the checkout that this file is in; None for an installed package or where there is no git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def shards(store: Store, rows: Ref) -> list[Ref]:
    """The shards of prompts in a rows tree, each with its own content digest."""
    listed = json.loads((store.tree(rows.digest) / "shards.json").read_text(encoding="utf-8"))
    return [Ref(digest=shard["sha256"], tree=rows.digest, file=shard["file"]) for shard in listed]


def _each(value, of):
    return of(value) if isinstance(value, Ref) else [of(item) for item in value]


def _downloaded(inputs: RefInputs) -> dict:
    """`{"sources": {input name: org/name@commit}}` of the inputs that came from the hub; {} where none did."""
    from_the_hub = {
        name: from_hub
        for name, value in inputs.items()
        if (from_hub := [ref.hub for ref in ([value] if isinstance(value, Ref) else value) if ref.hub])
    }
    return {"sources": from_the_hub} if from_the_hub else {}


def _digests(inputs: RefInputs) -> dict[str, str | list[str]]:
    return {name: _each(value, lambda ref: ref.digest) for name, value in inputs.items()}


def _sources_unchanged(inputs: RefInputs) -> None:
    """A file outside the store may have been edited while it was read: then the result belongs to no key."""
    for value in inputs.values():
        for ref in [value] if isinstance(value, Ref) else value:
            if not ref.path or resolve.stamp(Path(ref.path)) == ref.stamp:
                continue
            if (
                resolve.resolve(ref.path, ref.kind, "", Path(ref.path), ref.split, config=ref.config).digest
                != ref.digest
            ):
                raise StageFailed(f"{ref.path}: changed while it was being read; run again.")
