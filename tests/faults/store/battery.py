"""The good end state after any fault, and the means to get there: steps that a flow would run, forked processes.

Here for every store, ours and broken ones (mutants.py): `Make` opens one in a folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TypeVar

from spin_core.errors import StoreError
from spin_core.store import fs
from spin_core.store.gc import gc
from spin_core.store.keys import key_of, payload
from spin_core.store.record import Record
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.fault import Fault
from tests.faults.store import power
from tests.faults.store.kinds import FACTS, Step, step

ROOT = Path(__file__).parents[3]
FILES = {"config.json": b'{"layers": 2}', "weights/model.safetensors": bytes(range(256)) * 8}
PAYLOAD = payload("finetune", 1, {"finetune": {"beta": 0.1}, "seed": 42}, {"model": "a" * 64, "pairs": ["b" * 64]})
KEY = key_of(PAYLOAD)
STEP = Step(PAYLOAD, FILES)
BEFORE = step("demo_rows", {"rows.jsonl": b'{"id": 1}\n'})
"""What the step was made from: published before the fault, and not to be made again after it."""
KILLED = 137

Make = Callable[[Path], Store]
Point = TypeVar("Point")


def each(fault: Fault | None, points: Iterable[Point], trial: Callable[[Point], object]) -> None:
    """The trials of a fault; without one (a mutant's) they are not counted."""
    if fault is not None:
        fault.each(points, trial)
    else:
        for point in points:
            trial(point)


def contents(root: Path) -> dict[str, tuple[int, float]]:
    """Every path below, with its mode and time of change."""
    return {str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in sorted(root.rglob("*"))}


@contextmanager
def folder() -> Iterator[Path]:
    """A place for a store; in memory where that is possible, because some checks sync a thousand times."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="spinloop-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield path
    finally:
        fs.hook = None
        fs.remove(path)


def root_of(place: Path) -> Path:
    return place / "spinloop-store-v1"


def record_file(place: Path, step: Step = STEP) -> Path:
    return root_of(place) / "records" / step.stage / f"{step.key}.json"


def write_output(tree: Path, files: dict[str, bytes] = FILES) -> None:
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)


def publish(store: Store, key_payload: dict = PAYLOAD, files: dict[str, bytes] = FILES) -> Record:
    """What a stage does on a miss."""
    tree = store.new_tree()
    try:
        write_output(tree, files)
    except OSError:
        store.discard(tree)
        raise
    return store.publish(key_payload, tree, FACTS)


def compute(store: Store, step: Step = STEP, ran: list[str] | None = None) -> Record:
    """What a task does: look up, and on a miss compute and publish; `ran` gets the key of the latter."""
    record = store.lookup(step.stage, step.key)
    if record is None:
        if ran is not None:
            ran.append(step.key)
        record = publish(store, step.payload, step.files)
    return record


def assert_right(record: Record | None, files: dict[str, bytes] = FILES) -> None:
    assert record is not None, "a miss where a hit was due"
    contents_read = {str(p.relative_to(record.path)): p.read_bytes() for p in record.path.rglob("*") if p.is_file()}
    assert contents_read == files, "wrong bytes"


def overwrite(file: Path, data: bytes) -> None:
    """Damages a stored file in place, as a disk would: modes do not stop it."""
    file.chmod(0o644)
    file.write_bytes(data)


def in_child(work: Callable[[], object]) -> int:
    """Runs `work` in a forked process; its exit status, 1 if it raised."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def isolated(work: Callable[[], object]) -> None:
    """Runs `work` in a forked process and raises what went wrong there. For what cannot be undone: mounts, user ids."""
    ready, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            os.write(write_end, traceback.format_exc()[-3000:].encode())
        finally:
            os._exit(status)
    os.close(write_end)
    with open(ready, "rb") as stream:
        message = stream.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"exit status {status}: {message}"


def torn(place: Path) -> list[str]:
    """What is wrong with the store except leftovers in tmp/, which a killed process may leave."""
    return [line for line in verify(Store(place)) if not line.startswith("tmp/")]


def assert_recovers(
    make: Make, place: Path, step: Step = STEP, steps: tuple[Step, ...] = (), intact: bool = True
) -> None:
    """The good end state. (a) `intact` before any repair; (b) the next run finishes, (e) in which no step that
    had a record runs again; (c) a fresh store gets hits with the same bytes (a fresh interpreter too, which takes
    0.3 s: `assert_hit_in_new_interpreter`); (d) gc leaves tmp/ empty. `steps` were published before `step`.
    """
    fs.hook = None
    if intact:
        assert torn(place) == [], f"torn at the instant of the fault: {torn(place)}"
    both = (*steps, step)
    recorded = {one.key for one in both if record_file(place, one).exists() or one in steps} if intact else set()
    ran: list[str] = []
    for one in both:
        assert_right(compute(make(place), one, ran), one.files)
    assert not recorded & set(ran), f"ran again although published: {sorted(recorded & set(ran))}"

    for one in both:
        assert_right(make(place).lookup(one.stage, one.key), one.files)
    gc(make(place))
    assert list((root_of(place) / "tmp").iterdir()) == []
    assert verify(Store(place)) == []


def assert_hit_in_new_interpreter(place: Path, step: Step = STEP) -> None:
    """A process that shares nothing with this one gets the same bytes."""
    code = (
        "import sys;from pathlib import Path;from spin_core.store.store import Store;"
        "r=Store(Path(sys.argv[1])).lookup(*sys.argv[2:]);print(r.digest if r else '');"
        "[print(f['path'],(r.path/f['path']).read_bytes().hex()) for f in r.files]"
    )
    command = [sys.executable, "-c", code, str(place), step.stage, step.key]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert dict(line.split(" ") for line in done.splitlines()[1:] if not line.endswith(" ")) == {
        name: data.hex() for name, data in step.files.items() if data
    }


def events_of(make: Make, step: Step | None = STEP) -> list[str]:
    """The names of all hook events ("rename before", "rename after", …) of opening a new store and publishing; of
    opening alone without a step."""
    events: list[str] = []
    with folder() as place:
        fs.hook = lambda op, path: events.append(op)
        store = make(place)
        if step is not None:
            compute(store, step)
    return events


def two_runs(store: Store) -> None:
    """Two runs, of which each trained a model from one dataset."""
    rows = compute(store, Step(payload("reformat", 1, {}, {}), {"rows.jsonl": b"rows" * 20}))
    for n in range(2):
        made = payload("finetune", 1, {"n": n}, {"rows": rows.digest})
        model = compute(store, Step(made, {"w": b"%d" % n * 50, "t": b"tokenizer"}))
        links = {"001-reformat": rows.digest, "002-finetune-iter-0": model.digest, "best": model.digest}
        store.link_run(f"run-{n}", links)


def compute_failing(
    make: Make, place: Path, at: int, fail: Callable[[Path], None], step: Step = STEP, lasting: bool = False
) -> None:
    """Computes, and calls `fail` at event number `at` of the hook (`lasting`: from it on before every change)."""
    seen = -1

    def hook(op: str, path: Path) -> None:
        nonlocal seen
        seen += 1
        if (seen >= at and op.endswith("before")) if lasting else seen == at:
            fail(path)

    fs.hook = hook
    try:
        compute(make(place), step)
    finally:
        fs.hook = None


def die(path: Path) -> None:
    """As kill -9 does: no clean-up of any kind."""
    os._exit(KILLED)


def check_crashes(make: Make, fault: Fault | None = None, step: Step = STEP) -> None:
    """A process that dies before or after any change to the disk."""
    events = events_of(make, step)
    opening = events_of(make, None)
    assert len(events) > len(opening) + 20 > 30

    def trial(at: int) -> None:
        with folder() as place:
            if new := at < len(opening):
                steps: tuple[Step, ...] = ()
            else:
                steps = (BEFORE,)
                compute(make(place), BEFORE)
            at -= 0 if new else len(opening)
            assert in_child(lambda: compute_failing(make, place, at, die, step)) == KILLED
            assert_recovers(make, place, step, steps)

    each(fault, range(len(events)), trial)


def check_power_loss(make: Make, fault: Fault | None = None, step: Step = STEP) -> None:
    """Power goes after any operation: never wrong bytes, and once publishing has returned, a hit whatever was lost."""
    with folder() as place:
        compute(make(place), BEFORE)
        log = power.record(place, lambda: compute(make(place), step))

    def trial(point: tuple[int, str]) -> None:
        with folder() as target:
            power.after_power_loss(log, *point, target)
            if point[0] == len(log) - 1:
                assert record_file(target, step).exists(), "published and gone"
            assert_recovers(make, target, step, (BEFORE,))

    each(fault, product(range(len(log)), power.POLICIES), trial)


def check_errors(make: Make, number: int, lasting: bool, fault: Fault | None = None, step: Step = STEP) -> None:
    """A disk that refuses one change, or every change from one on: a loud failure, nothing partial."""
    events = events_of(make, step)
    # A lock that cannot be had, or not be signed, only costs work: no failure.
    harmless = () if lasting else ("lock before", "note before")
    points = [at for at, op in enumerate(events) if op.endswith("before") and op not in harmless]

    def refuse(where: Path) -> None:
        raise OSError(number, os.strerror(number), str(where))

    def trial(at: int) -> None:
        with folder() as place:
            try:
                compute_failing(make, place, at, refuse, step, lasting)
            except StoreError as error:
                assert "/" in str(error) and str(error).endswith("."), error
            else:
                raise AssertionError(f"{events[at]} (event {at}) failed in silence")
            if not lasting and root_of(place).is_dir():
                left = [path.name for path in root_of(place).glob("tmp/*")]
                assert not left or "unlink" in events[at] or "rmdir" in events[at], f"left in tmp/: {left}"
            assert_recovers(make, place, step)

    each(fault, points, trial)


def copy_store(place: Path, target: Path) -> None:
    """The store as `cp -r` copies it: links as links, times and owners of now."""
    shutil.copytree(root_of(place), root_of(target), symlinks=True, copy_function=shutil.copyfile)
