"""Opening a store: read-only, of another format, absent, planted with links."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store import fs
from spin_core.store.gc import gc
from spin_core.store.store import Store
from tests.faults.store import battery
from tests.faults.store.battery import KEY, assert_right, contents, publish, write_output


def refuse_writes(op: str, path: Path) -> None:
    raise OSError(errno.EROFS, "Read-only file system", str(path))


def test_read_only_store_lookup_hits_and_changes_nothing(store, place):
    """Catches a look-up that writes; the hook refuses every change, as a read-only mount does."""
    record = publish(store)
    before = contents(place)
    fs.hook = refuse_writes
    assert Store(place).lookup("finetune", KEY) == record
    assert Store(place, create=False).lookup("finetune", KEY) == record
    assert contents(place) == before


def test_read_only_store_without_its_empty_folders_still_hits(store, place):
    """Catches a copy that lost empty folders (rsync -m, object stores) being unusable."""
    publish(store)
    for name in ("runs", "tmp", "locks", "quarantine", "scratch"):
        fs.remove(store.root / name)
    fs.hook = refuse_writes
    assert_right(Store(place).lookup("finetune", KEY))


def test_read_only_store_miss_is_reported_before_computing(store, place):
    """Catches hours of work whose output has nowhere to go."""
    fs.hook = refuse_writes
    for act in (Store(place).check_writable, Store(place).new_tree, lambda: Store(place).scratch("finetune", KEY)):
        with pytest.raises(StoreError, match=r"spinloop-store-v1.*read-only; mount it writable"):
            act()


def test_read_only_store_damaged_tree_is_a_miss_that_is_reported(store, place):
    """Catches failing on, or serving, what cannot be moved to quarantine."""
    record = publish(store)
    battery.overwrite(record.path / "config.json", b"bad")
    fs.hook = refuse_writes
    reader = Store(place)
    assert reader.lookup("finetune", KEY) is None
    assert "cannot be written" in reader.notes[0] and "config.json" in reader.notes[0]


def test_check_writable_leaves_nothing(store):
    """Catches probe files that stay."""
    store.check_writable()
    assert list(store.root.glob("tmp/*")) == []


def test_store_of_another_format_is_refused(place):
    """Catches guessing at, or starting a second store beside, a newer one."""
    (place / "spinloop-store-v2").mkdir()
    with pytest.raises(StoreError, match=r"spinloop-store-v2.*another format"):
        Store(place)
    assert not (place / "spinloop-store-v1").exists()


def test_store_absent_and_not_to_be_made_is_reported(place):
    """Catches `spinloop store ls` in the wrong folder making an empty store there."""
    with pytest.raises(StoreError, match="no spinloop store here"):
        Store(place, create=False)
    assert list(place.iterdir()) == []


def test_store_path_that_is_a_file_is_reported(place):
    """Catches a bare NotADirectoryError."""
    (place / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        Store(place / "file")


@pytest.mark.parametrize("name", ["tmp", "trees", "nodes"])
def test_store_folder_replaced_by_a_link_is_refused(store, place, name):
    """Catches writing into whatever folder somebody pointed tmp/ or trees/ to."""
    if (store.root / name).exists():
        (store.root / name).rmdir()
    (store.root / name).symlink_to(place)
    with pytest.raises(StoreError, match=f"{name}: a link"):
        Store(place)


def test_store_full_life_without_root(place):
    """Catches what only root may do: renaming or removing read-only folders."""
    place.chmod(0o777)

    def life() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        store = Store(place / "inner")
        battery.overwrite(publish(store).path / "config.json", b"bad")
        assert store.lookup("finetune", KEY) is None
        publish(store)
        publish(store, files={"sub/other": b"1"})
        unpublished = store.new_tree()
        write_output(unpublished)
        (unpublished / "weights").chmod(0o555)
        store.discard(unpublished)
        assert_right(Store(place / "inner").lookup("finetune", KEY))
        store.link_run("empty", {})
        result = gc(store, keep_runs=0)
        assert (result.trees, result.records) == (2, 2)
        assert list(store.root.glob("trees/*")) == list(store.root.glob("tmp/*")) == []

    assert battery.in_child(life) == 0
