"""R30 of a folder: directories that are not mounted, cannot be read, or read differently each time; and gc that is
killed. gc removes nothing that is needed, and nothing that its list does not name."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spin_core.errors import BadInput, StoreError
from spin_core.store import fs, roots
from spin_core.store.gc import gc
from spin_core.store.keys import payload
from spin_core.store.store import Store
from spin_core.store.usage import usage
from spin_core.store.verify import verify
from tests.faults.fault import Fault
from tests.faults.store import battery, mounts
from tests.faults.store.battery import compute, each, folder, root_of, torn, two_runs
from tests.faults.store.kinds import Step

LYING = Fault("R30", "a folder of the store is empty, unreadable, foreign or in part there while gc reads it", 60, 600)
KILLED = Fault("R30", "gc of a folder is killed at a random operation", pr=10, night=100)
WAYS: tuple[dict, ...] = ({}, {"keep_runs": 1}, {"keep": ["run-1"]}, {"keep_runs": 0, "quarantine": True})


def fill(place: Path) -> Store:
    """Two runs, of which each trained a model from one dataset; a tree of nobody, unfinished work, one set aside."""
    store = Store(place)
    two_runs(store)
    loose = compute(store, Step(payload("generate", 1, {}, {}), {"p": b"pairs"}))
    (store.root / "records" / "generate" / f"{loose.key}.json").unlink()
    (store.root / "quarantine" / "x").write_bytes(b"damaged")
    store.scratch("finetune", "a" * 64)
    return store


def contents(root: Path) -> dict[str, bytes | str]:
    """Every file with its bytes, and every link."""
    paths = [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]
    here = {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes() for path in paths
    }
    return {name: data for name, data in here.items() if not name.startswith("locks/") and name != roots.LIST}


Names = Callable[[list[str], random.Random], list[str]]


def refusing(number: int) -> Names:
    def refuse(names: list[str], rng: random.Random) -> list[str]:
        raise OSError(number, os.strerror(number))

    return refuse


LISTINGS: dict[str, Names] = {
    "empty": lambda names, rng: [],
    "in part": lambda names, rng: names[1:],
    "some, each time others": lambda names, rng: [name for name in names if rng.random() < 0.6],
    "of another store": lambda names, rng: [f"{rng.getrandbits(256):064x}" for _ in names],
    "not to be entered": refusing(errno.EACCES),
    "failing": refusing(errno.EIO),
    "of a server that is gone": refusing(errno.ESTALE),
}


class Entries:
    """As `os.scandir` gives them."""

    def __init__(self, entries: Iterator[os.DirEntry[str]]) -> None:
        self._left = entries

    def __iter__(self) -> Entries:
        return self

    def __next__(self) -> os.DirEntry[str]:
        return next(self._left)

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@contextmanager
def read_as(place: Path, lie: Names, rng: random.Random) -> Iterator[None]:
    """As the disk would answer: `os.listdir` and `os.scandir` of one folder."""
    listdir, scandir = os.listdir, os.scandir

    def names(path: str | Path = ".") -> list[str]:
        return lie(listdir(path), rng) if Path(path) == place else listdir(path)

    def entries(path: str | Path = ".") -> Entries:  # which Python 3.13 lists a folder with; none can be made up
        kept = set(names(path))
        with scandir(path) as found:
            return Entries(entry for entry in list(found) if entry.name in kept)

    os.listdir, os.scandir = names, entries
    try:
        yield
    finally:
        os.listdir, os.scandir = listdir, scandir


@contextmanager
def unmounted(place: Path) -> Iterator[None]:
    """The empty folder on which a disk is mounted, without the disk."""
    disk = next(above for above in place.parents if above.name == "spinloop-store-v1").with_name("disk")
    os.rename(place, disk)
    place.mkdir()
    try:
        yield
    finally:
        place.rmdir()
        os.rename(disk, place)


def check_gc(collect: Callable[..., object], fault: Fault | None = None, rounds: int = 1) -> None:
    """Every lie about every folder that gc reads, with each of WAYS: what an honest disk has afterwards is there."""
    places = ("records", "records/finetune", "records/reformat", "trees", "runs", "runs/run-0", "runs/run-1")
    points = [(place, name) for place in places for name in ("not mounted", *LISTINGS) if not _is_unseen(place, name)]
    rightly = []
    for way in WAYS:
        with folder() as place:
            gc(fill(place), **way)
            rightly.append(contents(root_of(place)))

    def trial(number: int) -> None:
        at, name = points[number % len(points)]
        rng = random.Random(f"R30 {number}")
        way = (number + number // len(points)) % len(WAYS)
        with folder() as place:
            store, said = fill(place), ""
            before = contents(store.root)
            try:
                where = store.root / at
                with unmounted(where) if name == "not mounted" else read_as(where, LISTINGS[name], rng):
                    collect(store, **WAYS[way])
            except StoreError as error:
                said = str(error)
                assert said.startswith(str(place)) and said.endswith(".") and "\n" not in said, said
            except BadInput as error:
                said = str(error)  # the run to be kept is not there
            now = contents(store.root)
            lost = [path for path, data in rightly[way].items() if now.get(path) != data]
            assert not lost, f"{at} {name}, {WAYS[way]} ({said or 'gc ended well'}): lost {lost}"
            assert not said or now == before, f"{said}: changed {now.keys() ^ before.keys()}"

    each(fault, range(fault.count if fault else rounds * len(points)), trial)


def _is_unseen(place: str, name: str) -> bool:
    """A run's folder that keeps one link from being read, and gives the others, looks like one that has not got it."""
    return place.startswith("runs/") and name in ("in part", "some, each time others")


def test_gc_removes_nothing_that_is_needed_whatever_the_disk_lists(monkeypatch):
    """Catches a gc that takes a disk which is not mounted for an empty folder, a folder that it may not enter for one
    without links, and half of the records for all."""
    check_gc(gc, LYING)


def _without(*places: str) -> Callable[[Store], object]:
    """Takes folders or files of the store away."""
    return lambda store: [fs.remove(store.root / place) for place in places]


def _without_a_record(store: Store) -> None:
    """Of the rows from which both models were made, and to which no run leads."""
    fs.remove(store.root / "records" / "reformat")
    for run in ("run-0", "run-1"):
        store.link_run(run, {"001-reformat": None})


@pytest.mark.parametrize(
    ("change", "how", "why"),
    [
        (_without("records", "runs"), {}, r"outputs and files are there \(4\), and no record"),
        (_without("trees"), {}, "the outputs of all 3 records are missing"),
        (_without("runs"), {"keep_runs": 1}, "runs/ shows no run, so none of 3 records would be kept"),
        (_without("records/reformat"), {}, "runs/run-0 leads by 001-reformat to the output .* without one"),
        (_without_a_record, {}, "finetune .* was made from the output .* which is there without one"),
    ],
)
def test_gc_of_a_store_that_cannot_be_all_there_is_refused(place, change, how, why):
    """Catches a gc that asks nothing but the records what is needed; each refusal by itself, while in the battery
    others hold too."""
    store = fill(place)
    change(store)
    before = contents(store.root)
    with pytest.raises(StoreError, match=why):
        gc(store, **how)
    assert contents(store.root) == before


def test_gc_that_reads_a_folder_differently_the_second_time_is_refused(place):
    """Catches a gc that believes the first reading."""
    store = fill(place)
    before, times = contents(store.root), []

    def first_none(names: list[str], rng: random.Random) -> list[str]:
        times.append(names)
        return [name for name in names if name.startswith(".") or len(times) > 2]

    lie = read_as(store.root / "runs" / "run-1", first_none, random.Random(1))
    with lie, pytest.raises(StoreError, match="reads differently each time"):
        gc(store, keep_runs=1)
    assert contents(store.root) == before


def gc_that_believes(store: Store, **how: object) -> object:
    """What is listed is all that there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roots, "demand_all", lambda *_: None)
        return gc(store, **how)


def test_battery_gc_that_believes_a_folder_is_caught():
    """Catches lies in which nothing is at stake."""
    with pytest.raises(AssertionError, match=r"records not mounted, .*gc ended well.*'trees/"):
        check_gc(gc_that_believes, rounds=len(WAYS))


def test_gc_killed_at_any_time_has_listed_what_is_gone_and_the_next_one_finishes():
    """Catches removal of what the list does not name, and a store that gc refuses because of its own death."""
    events: list[str] = []
    with folder() as place:
        store = fill(place)
        fs.hook = lambda op, path: events.append(op)
        gc(store, keep_runs=1)
        fs.hook = None
        ended = contents(store.root)

    def trial(rng: random.Random) -> None:
        last = rng.randrange(len(events))
        with folder() as place:
            before = set(contents(fill(place).root))

            def work() -> None:
                left = last

                def die(op: str, path: Path) -> None:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os._exit(battery.KILLED)

                fs.hook = die
                gc(Store(place), keep_runs=1)

            assert battery.in_child(work) == battery.KILLED
            assert torn(place) == []
            root = root_of(place)
            listed = json.loads((root / roots.LIST).read_text())["removes"] if (root / roots.LIST).exists() else []
            gone = before - set(contents(root)) - {path for path in before if path.startswith("runs/")}
            assert not [path for path in gone if not path.startswith(tuple(listed))], f"{gone}, listed {listed}"
            gc(Store(place), keep_runs=1)
            assert contents(root) == ended

    KILLED.run(trial)


@pytest.mark.skipif(bool(mounts.why_not()), reason=mounts.why_not() or "-")
@pytest.mark.parametrize("name", ["records", "trees", "runs", "locks"])
def test_gc_of_a_store_with_another_disk_mounted_in_it_is_refused(name, place):
    """Catches a gc that works on two stores which lie in one another."""
    store = fill(place)
    before = contents(store.root)

    def work() -> None:
        mounts.own_mounts()
        mounts.memory_disk(store.root / name, "size=1m")
        with pytest.raises(StoreError, match=f"{name}: lies on another file system than the store"):
            gc(store, keep_runs=1)

    battery.isolated(work)
    assert contents(store.root) == before


@pytest.mark.parametrize("name", ["failing", "not to be entered", "of a server that is gone"])
@pytest.mark.parametrize("at", ["records", "records/finetune"])
def test_folder_that_cannot_be_read_is_not_empty(name, at, place):
    """Catches `store ls`, `verify` and `du` of a store whose records cannot be read, for which there are none."""
    store = fill(place)
    for look in (lambda: list(store.records()), lambda: verify(store), lambda: usage(store)):
        with read_as(store.root / at, LISTINGS[name], random.Random(1)), pytest.raises(StoreError, match=str(place)):
            look()


def test_gc_record_that_cannot_be_read_is_named(store):
    """Catches a gc to which a damaged record is one that needs nothing, and a sentence without the file."""
    record = compute(store)
    file = battery.record_file(store.root.parent)
    battery.overwrite(file, file.read_bytes()[:-9])
    with pytest.raises(
        StoreError, match=r"finetune/[0-9a-f]{64}\.json: this is not a whole record .* its profile again"
    ):
        gc(store)
    assert record.path.is_dir()
    assert compute(store) == record
    gc(store)


def test_gc_says_what_it_removed(store):
    """Catches a list that is written after the removal, or that leaves out what went."""
    fill(store.root.parent)
    result = gc(store, keep_runs=1, quarantine=True)
    said = json.loads((store.root / roots.LIST).read_text())
    assert said["finished"] is True
    assert len([name for name in said["removes"] if name.startswith("trees/")]) == result.trees
    assert {name.split("/")[0] for name in said["removes"]} == {"trees", "scratch", "quarantine"}
