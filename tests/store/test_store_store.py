"""What the store promises when nothing fails: first writer wins, nothing is overwritten, names stay inside."""

from __future__ import annotations

import os
import pickle
import stat
import struct
import time
import zipfile
from pathlib import Path

import pytest

from spin_core.errors import BadInput, StageFailed, StoreError
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.store import battery
from tests.faults.store.battery import FACTS, FILES, KEY, PAYLOAD, assert_right, contents, publish, write_output


def test_publish_then_lookup_in_another_store_object_returns_the_same_record(store, place):
    """Catches a record that does not survive being written."""
    record = publish(store)
    cached = Store(place).lookup("finetune", KEY)
    assert cached == record
    assert_right(cached)
    assert (record.stage, record.key, record.payload, record.facts) == ("finetune", KEY, PAYLOAD, FACTS)
    assert record.path == store.tree(record.digest)
    assert [entry["path"] for entry in record.files] == sorted(FILES)
    assert list((store.root / "tmp").iterdir()) == []


def test_publish_tree_is_read_only_and_the_store_private(store):
    """Catches outputs that a later stage could edit in place, and stores that others can write to."""
    record = publish(store)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in [record.path, *record.path.rglob("*"), store.root]}
    assert modes[record.digest] == modes["weights"] == 0o555
    assert modes["config.json"] == modes["model.safetensors"] == 0o444
    assert modes[store.root.name] == 0o700


def test_publish_same_output_again_keeps_the_first_record(store):
    """Catches overwriting: the facts of the first making stand."""
    first = publish(store)
    tree = store.new_tree()
    write_output(tree)
    assert store.publish(PAYLOAD, tree, {"summary": "another"}) == first
    assert len(list(store.root.glob("records/*/*"))) == 1
    assert not tree.exists()
    assert store.notes == []


def test_publish_other_output_for_the_key_keeps_the_first_and_the_evidence(store):
    """Catches last-writer-wins, and hiding that a stage is not deterministic."""
    first = publish(store)
    second = publish(store, files={"config.json": b"other"})
    assert second == first == store.lookup("finetune", KEY)
    evidence = list(store.root.glob("records/finetune/*nondeterministic*"))
    other = next(p for p in store.root.glob("trees/*") if p.name != first.digest)
    assert [p.name for p in evidence] == [f"{KEY}.nondeterministic-{other.name[:12]}.json"]
    assert [record.digest for record in store.records()] == [first.digest]
    assert "another output" in store.notes[0]
    assert verify(store) == []


def test_publish_two_keys_with_one_output_share_the_tree(store):
    """Catches trees named by key: the wave would not stop where the bytes are the same."""
    other = battery.payload("finetune", 2, {}, {})
    assert publish(store).path == publish(store, other).path
    assert len(list(store.root.glob("trees/*"))) == 1


@pytest.mark.parametrize("name", ["w.bin", "w.pt", "w.pth", "w.pkl", "w.PICKLE", "deep/w.ckpt", "training_args.bin"])
def test_publish_file_named_like_a_pickle_is_refused(store, name):
    """Catches Trainer's training_args.bin in a published checkpoint."""
    with pytest.raises(StageFailed, match=r"w\.|training_args"):
        publish(store, files={name: b"harmless"})
    assert list(store.root.glob("trees/*")) == list(store.root.glob("tmp/*")) == []


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_publish_pickle_under_an_innocent_name_is_refused(store, protocol):
    """Catches a check by suffix only."""
    with pytest.raises(StageFailed, match="can run code"):
        publish(store, files={"metrics.json": pickle.dumps({"a": [1]}, protocol=protocol)})


def test_publish_torch_archive_under_an_innocent_name_is_refused(store, place):
    """Catches torch.save's zip of a pickle."""
    with zipfile.ZipFile(place / "zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with pytest.raises(StageFailed, match="can run code"):
        publish(store, files={"model.safetensors": (place / "zip").read_bytes()})


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_publish_safetensors_whose_header_length_looks_like_a_pickle_is_accepted(store, length):
    """Catches refusing one safetensors file in some hundreds by its first two bytes."""
    header = b"{}".ljust(length)
    publish(store, files={"model.safetensors": struct.pack("<Q", length) + header})


def test_publish_empty_output_is_refused(store):
    """Catches caching a stage that wrote nothing as a success."""
    with pytest.raises(StageFailed, match="no file"):
        store.publish(PAYLOAD, store.new_tree(), {})


@pytest.mark.parametrize("plant", [lambda p: p.symlink_to("/etc/passwd"), lambda p: p.symlink_to("/etc"), os.mkfifo])
def test_publish_link_or_fifo_is_refused_and_the_target_untouched(store, place, plant):
    """Catches following links (chmod of the target) and waiting for a FIFO's writer for ever."""
    mode = Path("/etc/passwd").stat().st_mode
    tree = store.new_tree()
    write_output(tree)
    plant(tree / "x")
    with pytest.raises(StoreError, match="x: this is"):
        store.publish(PAYLOAD, tree, {})
    assert Path("/etc/passwd").stat().st_mode == mode
    assert list(store.root.glob("tmp/*")) == []


@pytest.mark.parametrize("facts", [{"loss": float("nan")}, {"x": (1, 2)}, {"x": Path("/")}])
def test_publish_facts_that_are_not_plain_are_refused_before_anything_is_stored(store, facts):
    """Catches NaN in records (other JSON readers refuse them) and str() of objects."""
    tree = store.new_tree()
    write_output(tree)
    with pytest.raises(BadInput, match=r"^facts\."):
        store.publish(PAYLOAD, tree, facts)
    assert list(store.root.glob("trees/*")) == []


def test_publish_folder_from_elsewhere_is_refused_and_untouched(store, place):
    """Catches moving away a person's own folder."""
    write_output(place / "mine")
    with pytest.raises(StoreError, match="new_tree"):
        store.publish(PAYLOAD, place / "mine", {})
    assert (place / "mine/config.json").exists()


def test_lookup_unknown_key_is_a_plain_miss(store):
    """Catches notes or files for what was never there."""
    before = contents(store.root)
    assert store.lookup("finetune", KEY) is None
    assert store.notes == [] and list(store.root.glob("records/*")) == []
    assert before.keys() <= contents(store.root).keys()


@pytest.mark.parametrize(
    ("stage", "key"), [("../x", KEY), ("finetune", "../" + KEY), ("finetune", KEY[:-1]), ("", KEY)]
)
def test_lookup_name_that_leaves_the_store_is_refused(store, stage, key):
    """Catches path traversal."""
    with pytest.raises(BadInput):
        store.lookup(stage, key)


def test_store_moved_keeps_its_hits_and_links(store, place):
    """Catches absolute paths in records or links."""
    record = publish(store)
    store.link_run("demo", {"01-finetune": record.digest})
    (place / "new").mkdir()
    store.root.rename(place / "new" / store.root.name)
    moved = Store(place / "new")
    assert_right(moved.lookup("finetune", KEY))
    assert (moved.root / "latest/01-finetune/config.json").read_bytes() == FILES["config.json"]


def test_scratch_survives_and_is_the_same_for_the_next_attempt(store, place):
    """Catches checkpoints that a rerun does not find."""
    (store.scratch("finetune", KEY) / "checkpoint").write_bytes(b"1")
    assert (Store(place).scratch("finetune", KEY) / "checkpoint").read_bytes() == b"1"
    store.drop_scratch("finetune", KEY)
    store.drop_scratch("finetune", KEY)
    assert list(store.root.glob("scratch/*")) == []


def test_records_lists_all_but_the_damaged_with_a_note(store):
    """Catches one bad record hiding the others."""
    publish(store)
    other = publish(store, battery.payload("generate", 1, {}, {}), {"a.jsonl": b"{}"})
    battery.overwrite(store.root / "records/finetune" / f"{KEY}.json", b"{")
    assert list(store.records()) == [other]
    assert KEY in store.notes[0]


def test_lookup_small_tree_takes_less_than_five_milliseconds(store):
    """Catches look-ups that sync or scan the store: the fastest of 20 counts, so that a busy machine does not."""
    publish(store)
    took = []
    for _ in range(20):
        begun = time.perf_counter()
        store.lookup("finetune", KEY)
        took.append(time.perf_counter() - begun)
    assert min(took) < 0.005
