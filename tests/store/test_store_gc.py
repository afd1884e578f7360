"""verify finds what is wrong; gc takes what nobody needs, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store import fs, locks
from spin_core.store.gc import GcResult, gc
from spin_core.store.keys import payload
from spin_core.store.record import Record
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.store import battery, racing
from tests.faults.store.battery import KEY, assert_right, publish, write_output


def step(store: Store, stage: str, name: str, *inputs: Record) -> Record:
    """A record whose output is `name` and whose inputs are the outputs of others."""
    made = payload(stage, 1, {"name": name}, {"from": [record.digest for record in inputs]})
    return publish(store, made, {"out.txt": name.encode()})


def abandoned_tree(place: Path) -> Path:
    """A folder of new_tree whose process was killed while it wrote."""
    with racing.living(lambda: write_output(Store(place).new_tree())):
        pass
    return next(path for path in (place / "spinloop-store-v1/tmp").iterdir() if path.is_dir())


def test_verify_intact_store_has_no_problems(store):
    """Catches false alarms, for evidence and run views too."""
    record = publish(store)
    publish(store, files={"other": b"1"})
    store.link_run("demo", {"01": record.digest})
    store.scratch("finetune", KEY)
    assert verify(store) == verify(store, deep=False) == []


def test_gc_takes_meetings_of_nodes_that_are_gone(store):
    """Catches folders of killed runs over several nodes that stay for good, and a gc that takes one while they meet."""
    (store.root / "nodes/run-7").mkdir(parents=True)
    (store.root / "nodes/run-7/node-0-0123456789abcdef.json").write_text("{}")
    with store.using(), pytest.raises(StoreError, match="a run is using the store"):
        gc(Store(store.root.parent))
    assert gc(store).temp == 1 and not list((store.root / "nodes").iterdir())


def test_verify_each_kind_of_damage_is_named(store, place):
    """Catches an fsck that overlooks a kind of damage, or names no place."""
    names = ["flipped", "missing", "cut", "renamed", "unrecorded"]
    made = {name: step(store, "generate", name) for name in names}
    records = store.root / "records/generate"
    battery.overwrite(made["flipped"].path / "out.txt", b"flippeD")
    made["missing"].path.chmod(0o755)
    fs.remove(made["missing"].path)
    battery.overwrite(records / f"{made['cut'].key}.json", b"{")
    (records / f"{made['renamed'].key}.json").rename(records / f"{KEY}.json")
    (records / "notes.txt").write_bytes(b"")
    (store.root / "trees/mine").mkdir()
    (records / f"{made['unrecorded'].key}.json").unlink()
    stray = abandoned_tree(place)
    lines = verify(store)
    assert [line.split(":")[0] for line in lines] == [
        *sorted([f"trees/{made['flipped'].digest}", "trees/mine"]),
        *sorted(
            [
                f"records/generate/{made['missing'].key}.json",
                f"records/generate/{made['cut'].key}.json",
                f"records/generate/{KEY}.json",
                "records/generate/notes.txt",
            ]
        ),
        f"tmp/{stray.name}",
        f"tmp/{stray.name}.owner",
    ]
    assert verify(store) == lines, "verify changed something"


def test_verify_shallow_sees_sizes_and_not_bytes(store):
    """Catches a shallow check that hashes (slow) or sees nothing."""
    record = publish(store)
    data = (record.path / "config.json").read_bytes()
    battery.overwrite(record.path / "config.json", data[::-1])
    assert verify(store, deep=False) == []
    battery.overwrite(record.path / "config.json", data[:-1])
    assert len(verify(store, deep=False)) == 1


def test_gc_removes_what_dead_processes_left_and_counts_it(store, place):
    """Catches leftovers for ever, and wrong counts in what a person is shown."""
    tree = abandoned_tree(place)
    (store.scratch("finetune", KEY) / "checkpoint").write_bytes(b"12345")
    (store.root / "tmp/1-0.record").write_bytes(b"123")
    size = sum(map(len, battery.FILES.values())) + 5 + 3
    expected = GcResult(bytes=size, trees=0, records=0, temp=2, scratch=1)
    assert gc(store, dry_run=True) == expected
    assert tree.exists()
    assert gc(store) == expected
    assert list(store.root.glob("tmp/*")) == list(store.root.glob("scratch/*")) == []
    assert gc(store) == GcResult(0, 0, 0, 0, 0)


def test_gc_keeps_the_folder_and_scratch_of_a_living_process(store, place):
    """Catches gc by age, or without looking who is there: hours of work would vanish under a running stage."""
    tree = store.new_tree()
    write_output(tree)
    scratch = store.scratch("finetune", KEY)
    with store.lock("finetune", KEY):
        assert gc(Store(place)) == GcResult(0, 0, 0, 0, 0)
        assert scratch.exists()
    assert_right(store.publish(battery.PAYLOAD, tree, {}))


def test_gc_removes_trees_that_no_record_names_and_no_other(store):
    """Catches gc without roots, and gc that forgets trees which only evidence names."""
    record = publish(store)
    publish(store, files={"other": b"1"})
    orphan = step(store, "generate", "orphan")
    (store.root / "records/generate" / f"{orphan.key}.json").unlink()
    result = gc(store)
    assert (result.trees, result.records) == (1, 0)
    assert not orphan.path.exists()
    assert_right(store.lookup("finetune", KEY))
    assert len(list(store.root.glob("trees/*"))) == 2 and record.path.exists()
    assert verify(store) == []


def test_gc_while_a_run_uses_the_store_is_refused_and_does_nothing(store, place):
    """Catches gc taking a tree between a look-up and its use."""
    abandoned_tree(place)
    with store.using(), pytest.raises(StoreError, match="run gc again when it has finished"):
        gc(Store(place), keep_runs=0)
    assert len(list(store.root.glob("tmp/*"))) == 2


def test_gc_where_locks_do_not_work_is_refused(store, monkeypatch):
    """Catches taking "no lock could be had" for "nobody is there"."""

    def unsupported(fd: int, mode: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", unsupported)
    with pytest.raises(StoreError, match="locks do not work"):
        gc(store)


def test_gc_keep_runs_keeps_the_last_runs_and_all_they_were_made_from(store):
    """Catches keeping only what is linked: the next run of the same profile would compute its upstream again."""
    rows = step(store, "reformat", "rows")
    old = step(store, "generate", "old", rows)
    upstream = step(store, "generate", "upstream", rows)
    model = step(store, "finetune", "model", upstream)
    loose = step(store, "generate", "loose")
    store.link_run("zebra", {"01": old.digest})
    store.link_run("apple", {"01": model.digest})
    store.write_run_file("zebra", "report.html", b"hi")
    result = gc(store, keep_runs=1)
    assert (result.trees, result.records) == (2, 2)
    kept = {record.digest for record in store.records()}
    assert kept == {rows.digest, upstream.digest, model.digest}
    assert {p.name for p in store.root.glob("trees/*")} == kept
    assert not loose.path.exists()
    assert sorted(p.name for p in store.root.glob("runs/*/*") if p.name != ".order") == ["01", "report.html"]
    assert verify(store) == []


def test_gc_keep_runs_counts_a_run_that_was_shown_again_as_the_last(store):
    """Catches ordering runs by name or by file times (a copied store has others)."""
    first, second = step(store, "generate", "first"), step(store, "generate", "second")
    store.link_run("a", {"01": first.digest})
    store.link_run("b", {"01": second.digest})
    store.link_run("a", {"01": first.digest})
    for path in store.root.glob("runs/*"):
        os.utime(path, (0, 0))
    gc(store, keep_runs=1)
    assert [record.digest for record in store.records()] == [first.digest]


def killed(work: Callable[[], object], k: int) -> None:
    """Does `work` in a process that ends before its event number `k` of the hook."""
    seen: list[str] = []

    def die(op: str, path: Path) -> None:
        seen.append(op)
        if len(seen) > k:
            os._exit(battery.KILLED)

    def dying() -> None:
        fs.hook = die
        work()

    assert battery.in_child(dying) == battery.KILLED


def test_gc_killed_at_any_operation_leaves_an_intact_store():
    """Catches removing a tree before its record, or piece by piece under its name."""

    def build(place: Path) -> Store:
        store = Store(place)
        publish(store)
        step(store, "generate", "other")
        store.link_run("empty", {})
        return store

    events: list[str] = []
    with battery.folder() as place:
        build(place)
        fs.hook = lambda op, path: events.append(op)
        gc(Store(place), keep_runs=0)
    assert len(events) > 20
    for k in range(len(events)):
        with battery.folder() as place:
            build(place)
            killed(lambda place=place: gc(Store(place), keep_runs=0), k)
            assert battery.torn(place) == [], events[k]
            gc(Store(place), keep_runs=0)
            assert list((place / "spinloop-store-v1/trees").iterdir()) == []
            assert list((place / "spinloop-store-v1/tmp").iterdir()) == []
