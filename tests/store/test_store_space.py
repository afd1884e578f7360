"""Disk space: what outputs share, what du counts, and what gc keeps for people."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from spin_core.errors import BadInput
from spin_core.store import make_immutable as module
from spin_core.store.digest import manifest, tree_digest
from spin_core.store.gc import gc
from spin_core.store.keys import payload
from spin_core.store.record import Record
from spin_core.store.store import Store
from spin_core.store.usage import usage
from spin_core.store.verify import verify
from tests.faults.store import battery
from tests.faults.store.kinds import Step

TOKENIZER = bytes(range(256)) * 40


def model(store: Store, label: str, weights: bytes, *inputs: Record, tokenizer: bytes = TOKENIZER) -> Record:
    """A model made from others: its own weights, and by default everybody's tokenizer."""
    made = payload("finetune", 1, {"label": label}, {"model": [record.digest for record in inputs]})
    return battery.publish(store, made, {"model.safetensors": weights * 5000, "tokenizer.json": tokenizer})


def one_file(*paths: Path) -> bool:
    """Whether all are the same file on disk."""
    return len({(path.stat().st_dev, path.stat().st_ino) for path in paths}) == 1


def test_publish_file_that_an_input_has_takes_its_space_once(store, place):
    """Catches a tokenizer stored again in every iteration, and weights of the same size taken for the same."""
    first = model(store, "1", b"1")
    second = model(store, "2", b"2", first)
    assert one_file(first.path / "tokenizer.json", second.path / "tokenizer.json")
    assert not one_file(first.path / "model.safetensors", second.path / "model.safetensors")
    alone = Store(place / "other")
    assert model(alone, "2", b"2").digest == second.digest, "sharing changed what an output is"
    for record in (first, second):
        assert store.lookup("finetune", record.key) == record
    assert verify(store) == []


def test_publish_shares_with_inputs_only_and_no_file_of_another_name_or_bytes(store):
    """Catches links by size or name alone, and to trees that have nothing to do with the step."""
    first = model(store, "1", b"1")
    stranger = model(store, "2", b"2")
    changed = model(store, "3", b"3", first, tokenizer=TOKENIZER[:-1] + b"!")
    files = [record.path / "tokenizer.json" for record in (first, stranger, changed)]
    assert len({path.stat().st_ino for path in files}) == 3
    assert changed.path.joinpath("tokenizer.json").read_bytes().endswith(b"!")


def test_publish_file_of_an_input_that_is_damaged_or_writable_is_not_shared(store):
    """Catches a new output that inherits damage, or that somebody can change through another name."""
    first = model(store, "1", b"1")
    battery.overwrite(first.path / "tokenizer.json", TOKENIZER[:-1] + b"?")
    second = model(store, "2", b"2", first)
    assert (second.path / "tokenizer.json").read_bytes() == TOKENIZER
    battery.overwrite(second.path / "tokenizer.json", TOKENIZER)
    third = model(store, "3", b"3", second)
    assert not one_file(second.path / "tokenizer.json", third.path / "tokenizer.json")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_publish_file_of_another_user_is_not_shared(store):
    """Catches a finished stage that fails because it cannot seal somebody else's file (a store of a group)."""
    first = model(store, "1", b"1")
    os.chown(first.path / "tokenizer.json", 65534, 65534)
    second = model(store, "2", b"2", first)
    assert not one_file(first.path / "tokenizer.json", second.path / "tokenizer.json")


def test_shared_file_that_is_damaged_is_seen_in_each_output_and_heals(store):
    """Catches damage that one look-up sets aside and another serves, and a recomputed output that takes it back."""
    first = model(store, "1", b"1")
    second = model(store, "2", b"2", first)
    battery.overwrite(first.path / "tokenizer.json", b"x" * len(TOKENIZER))
    for record in (first, second):
        assert store.lookup("finetune", record.key) is None
    assert model(store, "1", b"1") == first and model(store, "2", b"2", first) == second
    for record in (first, second):
        assert store.lookup("finetune", record.key) == record
        assert (record.path / "tokenizer.json").read_bytes() == TOKENIZER


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV])
def test_publish_where_files_cannot_be_linked_keeps_its_own(store, monkeypatch, number):
    """Catches a file system without hard links, or a file that has as many as it may, that fails a finished stage."""
    first = model(store, "1", b"1")
    real = os.link

    def refuse(source, target):
        if str(target).endswith(".shared"):
            raise OSError(number, os.strerror(number))
        real(source, target)

    monkeypatch.setattr(os, "link", refuse)
    second = model(store, "2", b"2", first)
    assert not one_file(first.path / "tokenizer.json", second.path / "tokenizer.json")
    assert sorted(path.name for path in second.path.iterdir()) == ["model.safetensors", "tokenizer.json"]
    assert store.lookup("finetune", second.key) == second


def test_publish_where_blocks_can_be_shared_needs_no_link(store, monkeypatch):
    """Catches a copy on write that is not the input's bytes, or is linked all the same. The call is Linux's ioctl,
    which this disk may not have: done here by copying."""

    def clone(target: int, request: int, source: int) -> int:
        assert request == 0x40049409
        os.write(target, os.pread(source, 1 << 20, 0))
        return 0

    first = model(store, "1", b"1")
    monkeypatch.setattr(fcntl, "ioctl", clone)
    second = model(store, "2", b"2", first)
    assert not one_file(first.path / "tokenizer.json", second.path / "tokenizer.json")
    assert store.lookup("finetune", second.key) == second and verify(store) == []


def test_publish_that_dies_while_it_shares_recovers(monkeypatch, tmp_path):
    """Catches a half-shared output under its final name, and a link that outlives its publisher in tmp/."""
    monkeypatch.setattr(module, "SMALLEST", 1)
    for name, data in battery.BEFORE.files.items():
        (tmp_path / name).write_bytes(data)
    made = payload("finetune", 1, {}, {"rows": tree_digest(manifest(tmp_path))})
    step = Step(made, {**battery.BEFORE.files, "model.safetensors": b"weights"})
    assert "link before" in battery.events_of(Store, step)
    battery.check_crashes(Store, None, step)


def test_usage_counts_shared_files_once_and_says_what_only_a_run_has(store):
    """Catches a table that adds up to more than the disk has, and one that promises space which deleting a run would
    not free."""
    first = model(store, "1", b"1")
    second = model(store, "2", b"2", first)
    rows = battery.publish(store, payload("reformat", 1, {}, {}), {"rows.jsonl": b"r" * 100})
    store.link_run("one", {"01": rows.digest, "02": first.digest})
    store.link_run("two", {"01": rows.digest, "02": second.digest, "best": second.digest})
    (store.scratch("finetune", second.key) / "checkpoint").write_bytes(b"c" * 77)
    (store.root / "runs" / "costs.html").write_text("a page, no run")
    used = usage(store)
    models = 2 * 5000 + len(TOKENIZER)
    assert [(line.name, line.count, line.bytes) for line in used.stages] == [
        ("finetune", 2, models),
        ("reformat", 1, 100),
    ]
    assert [(line.name, line.count) for line in used.runs] == [("one", 2), ("two", 2)]
    assert sum(line.bytes for line in used.runs) == models + 200
    assert [line.bytes - line.only for line in used.runs] == [100, 100]
    assert [(line.name, line.bytes) for line in used.other] == [("scratch", 77)]
    assert used.total == models + 100 + 77
    alone = usage(store, "one")
    assert [(line.name, line.count) for line in alone.stages] == [("finetune", 1), ("reformat", 1)]
    assert [line.name for line in alone.runs] == ["one"] and alone.other == []


def runs_of_models(store: Store) -> list[Record]:
    """Three runs of one model each, made from rows of its own; the second's best model is its own, the others have
    none."""
    made = []
    for n in range(3):
        rows = battery.publish(store, payload("reformat", 1, {"n": n}, {}), {"rows.jsonl": f"{n}".encode()})
        made.append(model(store, f"{n}", f"{n}".encode(), rows))
        store.link_run(f"run{n}", {"01": made[-1].digest} | ({"best": made[-1].digest} if n == 1 else {}))
    return made


def test_gc_keeps_the_best_model_of_every_run_and_all_of_named_runs(store):
    """Catches a best model that goes with its run's other outputs, and a run that a person named and lost."""
    first, second, third = runs_of_models(store)
    freed: list[tuple[str, int]] = []
    dry = gc(store, keep=["run2"], dry_run=True, report=lambda what, size: freed.append((what, size)))
    assert len(list(store.records())) == 6
    result = gc(store, keep=["run2"])
    assert result == dry and (result.trees, result.records) == (3, 3)
    assert result.bytes == sum(size for _, size in freed) > 5000
    assert {what for what, _ in freed} == {"finetune", "reformat"}
    assert not first.path.exists() and second.path.exists() and third.path.exists()
    assert store.lookup("finetune", second.key) == second
    assert (store.root / "runs/run1/best").resolve() == second.path.resolve()
    assert verify(store) == []
    gc(store, keep_runs=0)
    assert [record.key for record in store.records()] == [second.key]


def test_gc_keeps_the_last_model_of_a_run_that_has_no_best(store):
    """Catches a store of before there were links to the best models, whose models all go."""
    first, second = model(store, "1", b"1"), model(store, "2", b"2")
    store.link_run("old", {"07-finetune-iter-0": first.digest, "12-finetune-iter-1": second.digest})
    gc(store, keep_runs=0)
    assert [record.key for record in store.records()] == [second.key]
    with pytest.raises(BadInput, match="-1 runs cannot be kept"):
        gc(store, keep_runs=-1)


def test_gc_run_to_keep_that_is_not_there_is_refused(store):
    """Catches a typing error that deletes the run which was to be kept."""
    made = runs_of_models(store)
    with pytest.raises(BadInput, match="run9: there is no such run to keep; runs are run0, run1, run2"):
        gc(store, keep_runs=0, keep=["run9"])
    assert all(record.path.exists() for record in made)


def test_gc_frees_a_shared_file_with_its_last_output_only(store):
    """Catches promising the space of a tokenizer that another output keeps."""
    first = model(store, "1", b"1")
    second = model(store, "2", b"2", first)
    store.link_run("one", {"01": first.digest})
    before, record = usage(store).total, battery.record_file(store.root.parent, Step(second.payload, {}))
    expected = 5000 + record.stat().st_size
    result = gc(store, keep=["one"])
    assert result.bytes == expected and before - usage(store).total == 5000
    assert not second.path.exists() and store.lookup("finetune", first.key) == first


def test_gc_takes_the_quarantine_only_on_request(store):
    """Catches evidence that vanishes by itself, and 14 GB of it that stay for ever."""
    record = model(store, "1", b"1")
    battery.overwrite(record.path / "model.safetensors", b"bad")
    assert store.lookup("finetune", record.key) is None
    assert gc(store).quarantine == 0 and len(list(store.root.glob("quarantine/*"))) == 2
    result = gc(store, quarantine=True)
    assert result.quarantine == 2 and result.bytes > len(TOKENIZER)
    assert list(store.root.glob("quarantine/*")) == []
