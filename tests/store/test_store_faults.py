"""Crashes, failing disks, damaged files: the store is whole, or says so."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import store_battery as battery
from store_battery import FILES, KEY, PAYLOAD, assert_right, compute, in_child, overwrite, publish

from spin_core.errors import StoreError
from spin_core.store import fs
from spin_core.store.record import encode
from spin_core.store.store import Store
from spin_core.store.verify import gc, verify


def test_publish_process_dies_at_any_operation_store_is_whole_and_recovers():
    """Catches writing in place, a record before its tree, and leftovers that block the next run."""
    battery.check_crashes(Store)


@pytest.mark.parametrize(
    ("number", "lasting"),
    [(errno.ENOSPC, False), (errno.ENOSPC, True), (errno.EIO, False), (errno.EROFS, True)],
    ids=["full once", "full", "input/output once", "read-only"],
)
def test_publish_disk_refuses_any_operation_raises_and_leaves_nothing_partial(number, lasting):
    """Catches swallowed errors and half-written outputs."""
    battery.check_errors(Store, number, lasting)


def test_publish_disk_full_leaves_tmp_empty_at_once(place):
    """Catches keeping a 14 GB output in tmp/ on the disk that it filled."""
    events = battery.count_events(Store)
    store = Store(place)

    def full(op: str, path: Path) -> None:
        if op == "rename before":
            raise OSError(errno.ENOSPC, "full", str(path))

    fs.hook = full
    with pytest.raises(StoreError, match="disk is full"):
        publish(store)
    assert "rename before" in events
    assert list((store.root / "tmp").iterdir()) == []


def test_publish_order_makes_each_layer_durable_before_the_next_names_it(store):
    """Catches a rename before the fsync of what it names (power loss would leave an empty file under a final name)."""
    log: list[tuple[str, str]] = []
    fs.hook = lambda op, path: log.append((op, path.name))
    record = publish(store)
    file = f"{KEY}.json"
    steps = [log.index(("fsync after", name.split("/")[-1])) for name in FILES]
    steps = [max(steps)]
    steps.append(log.index(("fsync after", "weights"), steps[-1]))
    steps.append(log.index(("rename after", record.digest), steps[-1]))
    steps.append(log.index(("fsync after", "trees"), steps[-1]))
    linked = log.index(("link after", file), steps[-1])
    written = [i for i, (op, name) in enumerate(log) if op == "fsync after" and name.endswith(".record")]
    assert steps[-1] < written[0] < linked
    assert ("fsync after", "records") in log[:linked]
    assert ("fsync after", "finetune") in log[linked:]


def test_publish_short_writes_are_completed(store, monkeypatch):
    """Catches taking the first write() for the whole."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    assert_right(compute(store))
    assert_right(Store(store.root.parent).lookup("finetune", KEY))


def test_publish_disk_fills_in_the_middle_of_the_record_no_record_stands(store, monkeypatch):
    """Catches a record that is visible while it is being written."""
    real, calls = os.write, []

    def half_then_full(fd: int, data: memoryview) -> int:
        calls.append(fd)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, bytes(data)[: len(data) // 2])

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(StoreError, match="disk is full"):
        publish(store)
    monkeypatch.undo()
    assert len(calls) == 2
    battery.assert_recovers(Store, store.root.parent)


def test_lookup_flipped_bit_anywhere_is_a_miss_and_quarantined():
    """Catches a look-up that trusts names or sizes."""
    battery.check_flips(Store)


def test_lookup_fifty_random_flips_none_is_served(place):
    """Catches hashing only a part of each file."""
    rng = random.Random(5)
    for _ in range(50):
        store = Store(place)
        record = compute(store)
        file = record.path / rng.choice(sorted(FILES))
        data = bytearray(file.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        overwrite(file, bytes(data))
        assert store.lookup("finetune", KEY) is None
        assert file.name in store.notes[-1]
    assert len(list((place / "spinloop-store-v1/quarantine").iterdir())) == 100


def test_lookup_tree_file_replaced_or_gone_is_a_miss():
    """Catches following links, hanging on a FIFO, and missing an added file."""
    battery.check_replaced(Store)


def test_lookup_tree_itself_a_link_to_the_same_bytes_is_a_miss(store, place):
    """Catches following a link that somebody put where a tree was (its target can change later)."""
    record = publish(store)
    record.path.chmod(0o755)
    record.path.rename(place / "elsewhere")
    record.path.symlink_to(place / "elsewhere")
    assert store.lookup("finetune", KEY) is None
    assert_right(compute(store))
    assert (place / "elsewhere/config.json").read_bytes() == FILES["config.json"]


def test_lookup_record_cut_or_flipped_at_each_byte_is_a_miss(store):
    """Catches a parser that is content with a part, and facts without a checksum."""
    publish(store)
    file = store.root / "records/finetune" / f"{KEY}.json"
    whole = file.read_bytes()
    rng = random.Random(7)
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        for bad in (whole[:at], bytes(flipped)):
            file.write_bytes(bad)
            assert store.lookup("finetune", KEY) is None, (at, bad[-40:])
            assert not file.exists()
    file.write_bytes(whole)
    assert_right(store.lookup("finetune", KEY))


@pytest.mark.parametrize(
    "text", [b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"store": 1e999}', b"9" * 5000, b"\xff\xfe", b'{"a":NaN}']
)
def test_lookup_record_of_another_form_is_a_miss(store, text):
    """Catches a traceback on a record that is JSON of another kind, or none."""
    publish(store)
    overwrite(store.root / "records/finetune" / f"{KEY}.json", text)
    assert store.lookup("finetune", KEY) is None


def test_lookup_record_of_another_key_under_this_name_is_a_miss(store):
    """Catches serving one step's output for another (a swapped or copied record)."""
    publish(store)
    other = battery.payload("finetune", 2, PAYLOAD["config"], PAYLOAD["inputs"])
    theirs = publish(store, other, {"config.json": b"other"})
    records = store.root / "records/finetune"
    overwrite(records / f"{KEY}.json", (records / f"{theirs.key}.json").read_bytes())
    assert store.lookup("finetune", KEY) is None
    assert store.lookup("finetune", theirs.key) == theirs


def test_lookup_record_rewritten_with_a_fresh_checksum_is_still_held_to_its_name(store):
    """Catches a checksum being the only check: the payload must hash to the key, and the files to the digest."""
    record = publish(store)
    other = publish(store, battery.payload("finetune", 2, {}, {}), {"config.json": b"other"})
    file = store.root / "records/finetune" / f"{KEY}.json"
    for spoof in ({"payload": other.payload}, {"digest": other.digest}, {"files": other.files}):
        file.unlink()
        file.write_bytes(encode(replace(record, **spoof)))
        assert store.lookup("finetune", KEY) is None, spoof
        publish(store)
    assert_right(store.lookup("finetune", KEY))


def test_publish_damaged_record_in_the_way_is_replaced(store):
    """Catches a damaged record that makes its key unpublishable for ever."""
    publish(store)
    overwrite(store.root / "records/finetune" / f"{KEY}.json", b"{")
    assert_right(publish(store))
    assert_right(store.lookup("finetune", KEY))


def test_lookup_disk_cannot_read_raises():
    """Catches `except Exception: return None` in a look-up."""
    battery.check_read_failure_is_told(Store)


def test_lookup_healed_meanwhile_does_not_set_aside_the_good_tree(store, monkeypatch):
    """Catches quarantining by name after another process has already replaced the damaged tree with a good one."""
    record = publish(store)
    overwrite(record.path / "config.json", b"bad")
    real = Store._judge
    first: list = []

    def judge(self, file):
        verdict = real(self, file)
        if not first:
            first.append(verdict[1])
            other = Store(store.root.parent)
            assert_right(compute(other))
        return verdict

    monkeypatch.setattr(Store, "_judge", judge)
    assert_right(store.lookup("finetune", KEY))
    assert first[0] is not None
    assert_right(record)


def test_publish_damaged_tree_in_the_way_is_replaced(store):
    """Catches taking what lies under the digest's name for the output without looking."""
    record = publish(store)
    (store.root / "records/finetune" / f"{KEY}.json").unlink()
    overwrite(record.path / "config.json", b"bad")
    assert_right(publish(store))
    assert len(list((store.root / "quarantine").iterdir())) == 1
    assert verify(store) == []


@pytest.mark.parametrize("planted", ["file", "link", "empty"])
def test_publish_something_else_in_the_way_is_replaced_and_victim_unchanged(store, place, planted):
    """Catches writing through a planted link, and failing for ever on a planted file."""
    digest = publish(store).path
    gone = Store(place)
    (store.root / "records/finetune" / f"{KEY}.json").unlink()
    digest.chmod(0o755)
    fs.remove(digest)
    victim = place / "victim"
    victim.mkdir()
    (victim / "config.json").write_bytes(b"victim")
    {"file": Path.touch, "link": lambda p: p.symlink_to(victim), "empty": Path.mkdir}[planted](digest)
    assert_right(publish(gone))
    assert {p.name: p.read_bytes() for p in victim.iterdir()} == {"config.json": b"victim"}


def test_store_process_killed_at_random_instants_never_serves_wrong_bytes(place):
    """Catches windows that the enumerated points do not see (25 kills at random times)."""
    rng = random.Random(11)
    for _ in range(25):
        pid = os.fork()
        if pid == 0:
            while True:
                store = Store(place)
                compute(store)
                fs.remove(place / "spinloop-store-v1/records/finetune" / f"{KEY}.json")
        select.select([], [], [], rng.random() * 0.03)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert battery.torn(place) == []
        assert in_child(lambda: assert_right(compute(Store(place)))) == 0
    gc(Store(place))
    assert verify(Store(place)) == []
