"""The battery's own test: stores that are broken on purpose must be caught by it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import store_battery as battery
import store_racing as racing

from spin_core.errors import StoreError
from spin_core.store import fs, locks
from spin_core.store import store as module
from spin_core.store.digest import Damaged, files_in, tree_digest
from spin_core.store.record import Record, read
from spin_core.store.store import Store


class WritesInPlace(Store):
    """Copies into the final folder instead of renaming into it."""

    def _place(self, tree: Path, target: Path, files: list[dict]) -> None:
        fs.make_dir(target)
        for name, path in files_in(tree):
            (target / name).parent.mkdir(exist_ok=True)
            with suppress(FileExistsError):
                fs.write_file(target / name, path.read_bytes())
        fs.sync(target.parent)


class RecordFirst(Store):
    """Writes the record, then the tree."""

    def _place(self, tree: Path, target: Path, files: list[dict]) -> None:
        self.late = (tree, target, files)

    def _commit(self, record: Record, file: Path) -> Record:
        standing = super()._commit(record, file)
        super()._place(*self.late)
        return standing


class SwallowsErrors(Store):
    """Goes on when the disk does not."""

    def publish(self, payload: dict, tree: Path, facts: dict) -> Record:
        try:
            return super().publish(payload, tree, facts)
        except StoreError:
            return Record("finetune", battery.KEY, payload, "", [], facts, tree)


class TrustsRecords(Store):
    """Looks only whether the folder is there."""

    def _judge(self, file: Path) -> tuple[Record | None, Damaged | None, list[Path]]:
        if not os.path.lexists(file):
            return None, None, []
        return read(file, self.root / "trees"), None, []


class HidesReadErrors(Store):
    """Takes a failing disk for a miss."""

    def lookup(self, stage: str, key: str) -> Record | None:
        try:
            return super().lookup(stage, key)
        except StoreError:
            return None


class ForgetsTheTree(Store):
    """Sets a damaged record aside but not the damaged tree, and takes a tree in the way for good."""

    def _set_aside(self, where: list[Path], bad: Damaged) -> None:
        super()._set_aside(where[:1], bad)

    def _place(self, tree: Path, target: Path, files: list[dict]) -> None:
        if not target.exists():
            super()._place(tree, target, files)


class SharesTempNames(Store):
    """All writers of a key use one temporary folder and start by clearing it (an old defect of the hub's cache)."""

    def new_tree(self) -> Path:
        tree = self.root / "tmp" / "the-one"
        with suppress(OSError):
            fs.remove(tree)
        with fs.boundary(tree):
            fs.make_dir(tree)
        return tree


def checks_sizes_only(tree: Path, files: list[dict]) -> None:
    found = {name: path.lstat().st_size for name, path in files_in(tree)}
    if found != {entry["path"]: entry["size"] for entry in files}:
        raise Damaged(f"{tree}: other sizes.")


def errors(make: battery.Make) -> None:
    battery.check_errors(make, errno.ENOSPC, lasting=False)


def races(make: battery.Make) -> None:
    racing.check_processes(make, rounds=10)


@pytest.mark.parametrize(
    ("broken", "check", "why"),
    [
        (WritesInPlace, battery.check_crashes, "torn at the instant"),
        (RecordFirst, battery.check_crashes, "torn at the instant"),
        (SwallowsErrors, errors, "nobody was told"),
        (TrustsRecords, battery.check_flips, "flipped bit in .* was served"),
        (TrustsRecords, battery.check_replaced, "damaged tree was served"),
        (HidesReadErrors, battery.check_read_failure_is_told, "taken for a miss"),
        (ForgetsTheTree, battery.check_flips, "torn at the instant"),
    ],
)
def test_battery_broken_store_is_caught(broken: type[Store], check: Callable[[battery.Make], None], why: str):
    """Catches a battery that would pass any store."""
    with pytest.raises(AssertionError, match=why):
        check(broken)


def test_battery_store_that_checks_sizes_only_is_caught(monkeypatch):
    """Catches flips being tested in a way that also changes sizes."""
    monkeypatch.setattr(module, "check_tree", checks_sizes_only)
    with pytest.raises(AssertionError, match="flipped bit"):
        battery.check_flips(Store)


def test_battery_shared_temporary_name_is_caught_without_locks(monkeypatch):
    """Catches a race check in which the racers never meet."""
    monkeypatch.setattr(locks.fcntl, "flock", lambda fd, mode: None)
    with pytest.raises(AssertionError):
        races(SharesTempNames)


def test_battery_mutants_differ_from_the_store_only_in_their_defect():
    """Catches mutants that fail for being unusable: without a fault each of them publishes and hits."""
    for broken in (WritesInPlace, RecordFirst, SwallowsErrors, TrustsRecords, HidesReadErrors, ForgetsTheTree):
        with battery.folder() as place:
            battery.assert_right(battery.compute(broken(place)))
            record = broken(place).lookup("finetune", battery.KEY)
            battery.assert_right(record)
            assert record is not None and tree_digest(record.files) == record.path.name
