"""R22, R23: a store that was copied, moved, restored or layered, and stores of other formats."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store.gc import gc
from spin_core.store.keys import payload
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.fault import Fault
from tests.faults.store import battery, mounts
from tests.faults.store.battery import BEFORE, STEP, assert_right, compute, folder, isolated, overwrite, root_of
from tests.faults.store.kinds import kinds

R22 = Fault("R22", "a store moved, copied, synced without times and empty folders, restored from tar, two on one host")
R22_LAYERS = Fault("R22", "a store in the lower layer of an overlay file system, damaged and cleared there")
R23 = Fault("R23", "a store of another format is refused; what version 1 wrote first is still read")
V1 = Path(__file__).parent / "v1"


def moved(place: Path, target: Path) -> None:
    root_of(place).rename(root_of(target))


def synced(place: Path, target: Path) -> None:
    """As `rsync -m` without -a: no times, no modes, no empty folders, no hard links."""
    for path in sorted(root_of(place).rglob("*")):
        to = target / path.relative_to(place)
        if path.is_symlink():
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(os.readlink(path))
        elif path.is_file():
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(path.read_bytes())


def restored(place: Path, target: Path) -> None:
    with tarfile.open(target / "store.tar", "w") as tar:
        tar.add(root_of(place), root_of(place).name)
    with tarfile.open(target / "store.tar") as tar:
        how = {"filter": "data" if os.geteuid() != 0 else "fully_trusted"}
        tar.extractall(target, **(how if hasattr(tarfile, "data_filter") else {}))  # Python below 3.11.4 has no filters


def hard_linked(place: Path, target: Path) -> None:
    """As `cp -rl`, the way backups share files: what is damaged in one is damaged in both, and is seen in both."""
    shutil.copytree(root_of(place), root_of(target), symlinks=True, copy_function=os.link)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "moved": moved,
    "copied": battery.copy_store,
    "synced": synced,
    "restored": restored,
    "hard-linked": hard_linked,
}


def test_store_elsewhere_hits_and_is_intact():
    """Catches a path, owner or time in a record, key or link, and folders that must be there although empty."""

    def trial(way: str) -> None:
        steps = [BEFORE, *kinds().values()]
        with folder() as place, folder() as target:
            links = {step.stage: compute(Store(place), step).digest for step in steps}
            Store(place).link_run("demo", links)
            WAYS[way](place, target)
            copy = Store(target)
            for step in steps:
                assert_right(copy.lookup(step.stage, step.key), step.files)
            assert verify(copy) == []
            for stage, digest in links.items():
                assert (root_of(target) / "latest" / stage).resolve() == copy.tree(digest).resolve()
            assert gc(copy, keep_runs=1).trees == 0
            battery.assert_recovers(Store, target, kinds()["score"], (BEFORE,))

    R22.each(WAYS, trial)


def test_two_stores_on_one_host_know_nothing_of_each_other():
    """Catches state of a process, a lock or a temporary name that two stores share."""

    def trial(order: int) -> None:
        with folder() as one, folder() as two:
            stores = [Store(one), Store(two)]
            with stores[order].lock(STEP.stage, STEP.key):
                compute(stores[order])
                assert stores[1 - order].lookup(STEP.stage, STEP.key) is None
                with stores[1 - order].lock(STEP.stage, STEP.key):
                    compute(stores[1 - order])
                overwrite(compute(stores[order]).path / "config.json", b"bad")
                assert stores[order].lookup(STEP.stage, STEP.key) is None
                assert_right(stores[1 - order].lookup(STEP.stage, STEP.key))
            gc(stores[order])
            for place in (one, two):
                battery.assert_recovers(Store, place)

    R22.each([0, 1], trial)


@pytest.mark.skipif(bool(mounts.why_no_overlay()), reason=mounts.why_no_overlay())
def test_store_in_the_lower_layer_of_an_overlay_lives_on():
    """Catches folders that are renamed: an overlay (a store in a container's image) moves files only."""

    def layered(place: Path, change: Callable[[Path, Store], None]) -> None:
        mounts.own_mounts()
        mounts.memory_disk(place, "size=8m")
        lower, work, merged = (place / name for name in ("lower", "work", "merged"))
        for path in (lower, work, merged):
            path.mkdir()
        for step in kinds().values():
            compute(Store(lower), step)
        mounts.overlay(lower, work, merged)
        store = Store(merged)
        for step in kinds().values():
            assert_right(store.lookup(step.stage, step.key), step.files)
        change(merged, store)
        battery.assert_recovers(Store, merged, BEFORE)
        assert battery.torn(lower) == []

    def damaged(merged: Path, store: Store) -> None:
        for step in kinds().values():
            name = sorted(step.files)[-1]
            overwrite(store.tree(compute(store, step).digest) / name, b"bad")
            assert store.lookup(step.stage, step.key) is None
            assert_right(compute(store, step), step.files)

    def cleared(merged: Path, store: Store) -> None:
        store.link_run("empty", {})
        assert gc(store, keep_runs=0).trees == len(kinds())
        assert list(root_of(merged).glob("trees/*")) == []

    kinds()  # made here: the child below may not start programs

    def trial(change: Callable[[Path, Store], None]) -> None:
        with folder() as place:
            isolated(lambda: layered(place, change))

    R22_LAYERS.each([lambda merged, store: None, damaged, cleared], trial)


def test_store_of_another_format_is_refused():
    """Catches guessing at, or starting a second store beside, a newer or older one."""

    def trial(name: str) -> None:
        with folder() as place:
            (place / name / "trees").mkdir(parents=True)
            with pytest.raises(StoreError, match=rf"{name}.*another format.*use the spinloop that made it"):
                Store(place)
            with pytest.raises(StoreError, match="another format"):
                Store(place, create=False)
            assert [path.name for path in place.iterdir()] == [name]

    R23.each(["spinloop-store-v2", "spinloop-store-v0", "spinloop-store-v10"], trial)


def test_store_that_version_1_wrote_first_is_read():
    """Catches a change of records, keys or digests by which every store that there is would be lost. The folder v1/
    was written in November 2026 and is not to be made again: a new format is a new folder name."""
    rows = payload("reformat", 1, {"dataset": {"test_fraction": 0.1}, "seed": 42}, {"source": "a" * 64})

    def trial(stage: str) -> None:
        with folder() as place:
            battery.copy_store(V1, place)
            store = Store(place)
            assert verify(store) == []
            standing = {record.stage: record for record in store.records()}
            assert set(standing) == {"reformat", "finetune"}
            record = standing[stage]
            assert store.lookup(stage, record.key) == record
            assert record.facts == {"summary": {"loss": 0.5, "steps": 3}, "seconds": 1.25}
            made = payload(*(record.payload[name] for name in ("stage", "version", "config", "inputs")))
            again = battery.publish(
                store, made, {f["path"]: (record.path / f["path"]).read_bytes() for f in record.files}
            )
            assert again == record
            assert gc(store, keep_runs=1).records == 1, "more than the evidence went"
            assert store.lookup("reformat", battery.key_of(rows)) == standing["reformat"]

    R23.each(["reformat", "finetune"], trial)
