"""R16, R17: a store that may not be written, or is somebody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store.gc import gc
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.fault import Fault
from tests.faults.store import battery, mounts
from tests.faults.store.battery import KEY, STEP, assert_right, compute, contents, isolated, overwrite, publish, root_of
from tests.faults.store.kinds import kinds, step

R16 = Fault("R16", "a store on a disk that was really mounted read-only, the output of each stage")
R17 = Fault("R17", "a store, or a folder or file of it, that another user owns or that nobody may enter")
R17_UMASK = Fault("R17", "umask 000 to 077: what is published has the same modes")
NOBODY = 65534
OTHER = step("finetune", battery.FILES, version=2)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.mark.skipif(bool(mounts.why_not()), reason=mounts.why_not())
def test_read_only_mount_hits_and_reports_a_miss_before_computing(place):
    """Catches a look-up that writes, a run that computes for hours and then cannot publish, and damage that is served
    because it cannot be moved."""

    def trial(stage: str) -> None:
        made = kinds()[stage]

        def work() -> None:
            mounts.own_mounts()
            mounts.memory_disk(place, "size=4m")
            record = compute(Store(place), made)
            damaged = compute(Store(place), OTHER)
            overwrite(damaged.path / "config.json", b"bad")
            mounts.read_only(place)
            before = contents(place)
            store = Store(place)
            with store.using() as held, store.lock(made.stage, made.key):
                assert held, "another mount's gc would not wait for this reader"
                assert store.lookup(made.stage, made.key) == record
            assert store.lookup(OTHER.stage, OTHER.key) is None
            assert "cannot be written" in store.notes[-1] and "config.json" in store.notes[-1]
            assert len(verify(store)) == 1
            for act in (store.check_writable, store.new_tree, lambda: store.scratch("finetune", KEY)):
                with pytest.raises(StoreError, match=r"spinloop-store-v1.*read-only; mount it writable"):
                    act()
            assert contents(place) == before

        isolated(work)

    R16.each(kinds(), trial)


def as_nobody(work) -> None:
    """Runs `work` in a process of a user without any rights."""

    def lowered() -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        work()

    isolated(lowered)


def everything(place: Path) -> None:
    """All that a run does with a store, and the commands."""
    store = Store(place)
    compute(store, STEP)
    compute(store, kinds()["gate"])
    store.link_run("demo", {})
    list(store.records())
    verify(store)
    gc(store)


@as_root
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o444])
def test_folder_that_may_not_be_entered_is_reported(place, mode):
    """Catches a bare PermissionError, and a look-up that takes what it may not see for not there."""
    place.chmod(0o755)
    compute(Store(place))
    names = [".", "trees", "records", "records/finetune", "runs", "tmp", "locks", "quarantine", "scratch"]
    names += [
        f"records/finetune/{KEY}.json",
        *(str(p.relative_to(root_of(place))) for p in root_of(place).glob("t*/*")),
    ]
    for path in (root_of(place), *root_of(place).rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def trial(name: str) -> None:
        path = root_of(place) / name
        before = path.lstat().st_mode
        path.chmod(mode)

        def work() -> None:
            try:
                everything(place)
            except StoreError as error:
                assert str(place) in str(error) and str(error).endswith("."), error
                assert "permission denied; change its owner or mode" in str(error) or (
                    name == "locks" and "locks do not work here" in str(error)
                ), error
            else:
                assert path.is_file() or name in ("quarantine", "scratch", "locks", "runs"), "failed in silence"

        try:
            as_nobody(work)
        finally:
            path.chmod(before)
        assert battery.torn(place) == []

    R17.each(names, trial)


@as_root
def test_store_of_another_user_is_reported_and_can_be_shared_for_reading(place):
    """Catches a traceback for whoever runs in somebody's folder; and a store that cannot be shared although its owner
    wants it (`chmod -R go+rX`, as the package's docstring says)."""
    place.chmod(0o755)
    before = os.umask(0o077)
    try:
        publish(Store(place))
    finally:
        os.umask(before)

    def refused() -> None:
        for open_it in (lambda: Store(place), lambda: Store(place, create=False)):
            with pytest.raises(StoreError, match=r"spinloop-store-v1.*permission denied; change its owner or mode"):
                open_it().lookup("finetune", KEY)

    def shared() -> None:
        store = Store(place)
        assert_right(store.lookup("finetune", KEY))
        with pytest.raises(StoreError, match="permission denied"):
            store.check_writable()

    def trial(name: str) -> None:
        if name == "shared":
            for path in (root_of(place), *root_of(place).rglob("*")):
                mode = path.stat().st_mode
                path.chmod(mode | (0o055 if path.is_dir() else 0o044))
        as_nobody({"private": refused, "shared": shared}[name])

    R17.each(["private", "shared"], trial)


def test_publish_under_any_umask_gives_the_same_modes():
    """Catches outputs that their own owner may not read, or that others may write."""

    def trial(mask: int) -> None:
        with battery.folder() as place:
            before = os.umask(mask)
            try:
                record = compute(Store(place))
                assert_right(Store(place).lookup("finetune", KEY))
            finally:
                os.umask(before)
            modes = {oct(path.lstat().st_mode & 0o777) for path in record.path.rglob("*") if path.is_file()}
            folders = {oct(path.lstat().st_mode & 0o777) for path in (record.path, *record.path.glob("*/"))}
            assert (modes, folders) == ({"0o444"}, {"0o555"}), (modes, folders)
            assert root_of(place).stat().st_mode & 0o077 == 0, "others may enter"
            battery.assert_recovers(Store, place)

    R17_UMASK.each([0o000, 0o002, 0o022, 0o027, 0o077], trial)
