"""Faults for any store: each check asserts the good end state. test_store_mutants tests the checks on broken stores."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from spin_core.errors import StoreError
from spin_core.store import fs
from spin_core.store.keys import key_of, payload
from spin_core.store.record import Record
from spin_core.store.store import Store
from spin_core.store.verify import gc, verify

PAYLOAD = payload("finetune", 1, {"finetune": {"beta": 0.1}, "seed": 42}, {"model": "a" * 64, "pairs": ["b" * 64]})
KEY = key_of(PAYLOAD)
FILES = {"config.json": b'{"layers": 2}', "weights/model.safetensors": bytes(range(256)) * 8}
FACTS = {"summary": {"loss": 0.5, "steps": 3}}
KILLED = 137

Make = Callable[[Path], Store]


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


def write_output(tree: Path, files: dict[str, bytes] = FILES) -> None:
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)


def publish(store: Store, key_payload: dict = PAYLOAD, files: dict[str, bytes] = FILES) -> Record:
    tree = store.new_tree()
    write_output(tree, files)
    return store.publish(key_payload, tree, FACTS)


def compute(store: Store) -> Record:
    """What a task does: ask, and on a miss compute and publish."""
    return store.lookup("finetune", KEY) or publish(store)


def assert_right(record: Record | None) -> None:
    assert record is not None, "a miss where a hit was due"
    found = {str(p.relative_to(record.path)): p.read_bytes() for p in record.path.rglob("*") if p.is_file()}
    assert found == FILES, "wrong bytes"


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


def count_events(make: Make) -> list[str]:
    """The names of all hook events ("rename before", "rename after", …) of opening a new store and publishing."""
    events: list[str] = []
    with folder() as place:
        fs.hook = lambda op, path: events.append(op)
        compute(make(place))
    return events


def torn(place: Path) -> list[str]:
    """What is wrong with the store except leftovers in tmp/, which a killed process may leave."""
    return [line for line in verify(Store(place)) if not line.startswith("tmp/")]


def assert_recovers(make: Make, place: Path) -> None:
    """Whole before recovery; the next run finishes; a fresh process gets a hit; gc leaves tmp/ empty."""
    fs.hook = None
    assert torn(place) == [], "torn at the instant of the fault"
    assert_right(compute(make(place)))
    assert in_child(lambda: assert_right(make(place).lookup("finetune", KEY))) == 0, "no hit after recovery"
    gc(make(place))
    assert list((place / "spinloop-store-v1" / "tmp").iterdir()) == []
    assert verify(Store(place)) == []


def check_crashes(make: Make) -> None:
    """A process that dies before or after any change to the disk."""
    events = count_events(make)
    assert len(events) > 40
    for k in range(len(events)):
        with folder() as place:
            assert in_child(partial(_compute_failing, make, place, k, _die)) == KILLED
            assert_recovers(make, place)


def check_errors(make: Make, number: int, lasting: bool) -> None:
    """A disk that refuses one change, or every change from one on: a loud failure, nothing partial."""
    events = count_events(make)
    for k, op in enumerate(events):
        # A lock that cannot be had only costs work: no failure.
        if op.endswith("after") or (op == "lock before" and not lasting):
            continue

        def refuse(where: Path) -> None:
            raise OSError(number, os.strerror(number), str(where))

        with folder() as place:
            try:
                _compute_failing(make, place, k, refuse, lasting)
            except StoreError as error:
                assert "/" in str(error) and str(error).endswith("."), error
            else:
                raise AssertionError(f"{op} (event {k}) failed and nobody was told")
            assert_recovers(make, place)


def _compute_failing(make: Make, place: Path, k: int, fail: Callable[[Path], None], lasting: bool = False) -> None:
    seen = -1

    def hook(op: str, path: Path) -> None:
        nonlocal seen
        seen += 1
        if (seen >= k and op.endswith("before")) if lasting else seen == k:
            fail(path)

    fs.hook = hook
    try:
        compute(make(place))
    finally:
        fs.hook = None


def _die(path: Path) -> None:
    os._exit(KILLED)


def check_flips(make: Make) -> None:
    """One bit of any file changes: a miss that names the file, then recomputed."""
    for name in (*FILES, "record"):
        with folder() as place:
            record = publish(make(place))
            file = (
                place / "spinloop-store-v1/records/finetune" / f"{KEY}.json" if name == "record" else record.path / name
            )
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            overwrite(file, bytes(data))
            store = make(place)
            assert store.lookup("finetune", KEY) is None, f"a flipped bit in {name} was served"
            assert len(store.notes) == 1 and file.name in store.notes[0]
            assert_recovers(make, place)


def check_replaced(make: Make) -> None:
    """A file of the tree that is gone, emptied, or became a link, folder or FIFO: a miss, and no hanging."""

    def link(path: Path) -> None:
        copy = path.parent.parent.parent / "copy"
        shutil.copy(path, copy)
        path.unlink()
        path.symlink_to(copy)

    def link_folder(path: Path) -> None:
        path.rename(path.parent.parent.parent / "weights")
        path.symlink_to(path.parent.parent.parent / "weights")

    def turned(path: Path, into: Callable[[Path], object]) -> None:
        path.unlink()
        into(path)

    damages: list[Callable[[Path], object]] = [
        Path.unlink,
        lambda path: overwrite(path, b""),
        lambda path: overwrite(path, path.read_bytes()[:-1]),
        lambda path: (path.parent / "more.json").write_bytes(b"{}"),
        link,
        lambda path: turned(path, Path.mkdir),
        lambda path: turned(path, os.mkfifo),
        lambda path: shutil.rmtree(path.parent),
        lambda path: link_folder(path.parent / "weights"),
    ]
    for damage in damages:
        with folder() as place:
            record = publish(make(place))
            record.path.chmod(0o755)
            damage(record.path / "config.json")
            store = make(place)
            assert store.lookup("finetune", KEY) is None, "a damaged tree was served"
            assert len(store.notes) == 1
            assert_recovers(make, place)


def check_read_failure_is_told(make: Make) -> None:
    """A disk that cannot read is a failure, not a miss: recomputing for hours would hide it."""
    for call in ("open", "readv", "scandir"):
        for number in (errno.EIO, errno.EACCES):
            with folder() as place:
                publish(make(place))
                with failing(call, number, place):
                    try:
                        make(place).lookup("finetune", KEY)
                    except StoreError as error:
                        assert str(place) in str(error)
                    else:
                        raise AssertionError("a read error was taken for a miss")
                assert_right(make(place).lookup("finetune", KEY))


@contextmanager
def failing(call: str, number: int, place: Path) -> Iterator[None]:
    """Lets one function of `os` fail on what is read from the trees."""
    real = getattr(os, call)

    def broken(target: Any, *rest: Any) -> Any:
        where = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        if where.startswith(f"{place}/spinloop-store-v1/trees/"):
            raise OSError(number, os.strerror(number))
        return real(target, *rest)

    setattr(os, call, broken)
    try:
        yield
    finally:
        setattr(os, call, real)


def overwrite(file: Path, data: bytes) -> None:
    """Damages a stored file in place, as a disk would: modes do not stop it."""
    file.chmod(0o644)
    file.write_bytes(data)
