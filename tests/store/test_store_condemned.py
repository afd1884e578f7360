"""gc of a folder that is never idle: what nobody needs is condemned, and goes when nobody can hold it any more."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import pytest

from spin_core.errors import StoreError
from spin_core.store import fs, pack
from spin_core.store.gc import GcResult, gc
from spin_core.store.record import Record
from spin_core.store.store import Store
from spin_core.store.verify import verify
from tests.faults.store import battery, racing
from tests.faults.store.battery import assert_right, compute, publish
from tests.faults.store.test_permissions import NOBODY, as_root
from tests.store.test_store_gc import abandoned_tree, killed, step
from tests.store.test_store_pack import filled

clear: Callable[[Store], GcResult] = partial(gc, keep_runs=1, while_used=True)


class User(ExitStack):
    """A process that uses the store: its own Store, and inside `using` until `close`."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.store = Store(place)
        using: AbstractContextManager[bool] = self.store.using()
        self.enter_context(using)


def runs(store: Store) -> tuple[Record, Record, Record]:
    """Two outputs that no run needs, and one that the last run does."""
    loose = step(store, "generate", "a"), step(store, "generate", "b")
    kept = step(store, "generate", "kept")
    store.link_run("run", {"01": kept.digest})
    return *loose, kept


def there(*records: Record) -> list[bool]:
    return [record.path.is_dir() for record in records]


def test_goes_when_all_have_ended_who_began_before(store: Store, place: Path) -> None:
    """Catches a gc that takes what somebody may hold who began before it was condemned, one that never takes anything
    of a store in use, and one that takes what a run needs."""
    a, b, kept = runs(store)
    left = abandoned_tree(place)
    first = User(place)
    done = clear(store)
    assert (
        (done.records, done.trees, done.waiting) == (0, 0, 2) and done.waiting_bytes > 1000 and all(there(a, b, kept))
    )
    second = User(place)
    assert clear(store).waiting == 2 and all(there(a, b, kept)), "the first may have looked them up"
    first.close()
    dry = clear(store, dry_run=True)
    assert (dry.records, dry.trees, dry.bytes, dry.waiting) == (2, 2, done.waiting_bytes, 0) and all(there(a, b, kept))
    done = clear(store)
    assert (done.records, done.trees, done.bytes, done.waiting) == (2, 2, dry.bytes, 0)
    assert done.temp == 0 and left.is_dir(), "what is no output waits for a gc that is alone"
    assert there(a, b, kept) == [False, False, True] and second.store.lookup("generate", a.key) is None
    second.close()
    assert gc(store).records == 0 and verify(store) == [] and store.notes == []


def test_who_began_later_keeps_what_it_looks_up(store: Store, place: Path) -> None:
    """Catches a look-up that does not say that it relies on what it returned, and one that keeps all."""
    a, b, kept = runs(store)
    with User(place):
        clear(store)
        second = User(place)
        assert second.store.lookup("generate", a.key)
    done = clear(store)
    assert (done.records, done.waiting) == (1, 1) and there(a, b, kept) == [True, False, True]
    third = User(place)
    second.close()
    assert clear(store).records == 1 and there(a, b, kept) == [False, False, True], "for good"
    third.close()
    assert verify(store) == []


def test_who_asks_where_an_output_lies_keeps_it(store: Store, place: Path) -> None:
    """Catches a child process, whose parent looked the output up, that loses it when the parent ends."""
    a, _, _ = runs(store)
    with User(place):
        clear(store)
        child = User(place)
        path = child.store.input_tree(a.digest)
    clear(store)
    assert path.is_dir()
    child.close()


@pytest.mark.parametrize("name", ["a", "other"])
def test_who_publishes_the_same_content_keeps_it(store: Store, place: Path, name: str) -> None:
    """Catches an output that goes right after it was published, as an older one of its key or content was condemned."""
    a, b, _ = runs(store)
    with User(place):
        clear(store)
        second = User(place)
        payload = {**a.payload, "version": a.payload["version"] + (name == "other")}
        made = publish(second.store, payload, {"out.txt": b"a"})
    done = clear(store)
    assert done.records == 1 and there(made, b) == [True, False]
    assert second.store.lookup(made.stage, made.key) and verify(store) == []
    second.close()


def test_a_list_that_comes_while_somebody_begins_is_seen(store: Store, place: Path) -> None:
    """Catches a process that read the list, was overtaken by a gc, and is taken for one that knows of it or is not
    waited for."""
    a, b, _ = runs(store)
    first, late = User(place), Store(place)
    listed, calls = late.condemned.listed, []

    def overtaken() -> object:
        seen = listed()
        if not calls:
            calls.append(clear(store))
        return seen

    late.condemned.listed = overtaken  # type: ignore[method-assign, assignment]
    with late.using():
        first.close()
        assert calls and store.condemned.others() == [], "it holds the lock of an epoch that is over"
        assert late.lookup("generate", a.key)
        clear(store)
        assert there(a, b) == [True, False]


def test_a_store_that_is_never_idle_stays_small(store: Store, place: Path) -> None:
    """Catches a gc that waits for ever, one that gives up its place after a run that is long, and growth by lock files
    and marks."""
    user, most = User(place), 0
    for turn in range(12):
        following = User(place)
        user.close()
        user = following
        made = [step(user.store, "generate", f"{turn}-{n}") for n in range(3)]
        user.store.link_run(f"run-{turn}", {str(n): record.digest for n, record in enumerate(made)})
        clear(store)
        assert all(there(*made)) and [user.store.lookup(one.stage, one.key) for one in made] == made
        most = max(most, len(list((store.root / "trees").iterdir())))
    assert most <= 9, "of three runs: the last, and those that wait"
    names = [path.name for path in (store.root / "locks").iterdir() if path.name.startswith("gc-")]
    assert len(names) <= 3 and len(list((store.root / "condemned").iterdir())) <= 4
    user.close()
    assert verify(store) == []


def test_an_idle_store_is_cleared_at_once_and_of_its_list(store: Store, place: Path) -> None:
    """Catches marks and lists that outlive their reason: the next user would keep what nobody asked for."""
    a, b, kept = runs(store)
    with User(place):
        clear(store)
        with User(place) as user:
            user.store.lookup("generate", a.key)
    done = clear(store)
    assert (done.records, done.waiting) == (2, 0) and there(a, b, kept) == [False, False, True]
    assert not store.condemned.listed().places and not store.condemned.marked()


def test_a_look_up_waits_while_a_gc_removes(store: Store, place: Path) -> None:
    """Catches a look-up that is answered with an output that is just going."""
    _, b, _ = runs(store)
    with User(place):
        clear(store)
        user = User(place)
    answers: list[Record | None] = []
    asking = threading.Thread(target=lambda: answers.append(user.store.lookup("generate", b.key)))

    def removing(op: str, path: Path) -> None:
        if op == "unlink before" and path.parent.name == "generate" and asking.ident is None:
            asking.start()
            asking.join(0.5)
            assert asking.is_alive(), "answered before it is known whether the output stays"

    fs.hook = removing
    try:
        assert clear(store).records == 2
    finally:
        fs.hook = None
    asking.join()
    assert answers == [None] and user.store.notes == []
    user.close()


def test_killed_at_any_operation_leaves_an_intact_store() -> None:
    """Catches a list that is half written, an epoch without its list, and records that outlive their trees."""

    def build(place: Path) -> None:
        """A list in force whose time has come, one output of it marked, and something to condemn."""
        store = Store(place)
        runs(store)
        with User(place):
            clear(store)
            after = User(place)
            after.store.lookup("generate", step(store, "generate", "a").key)
        step(after.store, "generate", "c")
        users.append(after)

    users: list[User] = []
    events: list[str] = []
    with battery.folder() as place:
        build(place)
        fs.hook = lambda op, path: events.append(f"{op} {path.name}")
        clear(Store(place))
        fs.hook = None
        users.pop().close()
    assert len(events) > 40
    for k in range(len(events)):
        with battery.folder() as place:
            build(place)
            killed(lambda place=place: clear(Store(place)), k)
            assert battery.torn(place) == [], events[k]
            store = Store(place)
            with User(place) as late:
                users.pop().close()
                for _ in range(2):
                    clear(store)
                kept = step(late.store, "generate", "kept")
                assert verify(late.store) == [] or all(line.startswith("tmp/") for line in verify(late.store))
            gc(store, keep_runs=1)
            assert list((store.root / "trees").iterdir()) == [kept.path], events[k]
            assert not store.condemned.listed().places and verify(store) == []


def test_what_a_packed_model_hangs_on_stays_with_it(store: Store, place: Path) -> None:
    """Catches a mark that keeps the delta and loses the weights that it begins with."""
    steps = filled(store)
    store.link_run("last", {"01": step(store, "generate", "kept").digest})
    assert pack.pack(store).models
    store.forget_run("run-1")
    with User(place):
        clear(store)
        user = User(place)
        record = user.store.lookup(steps[2].stage, steps[2].key)
    assert record and clear(store).records
    user.store.input_tree(record.digest)
    assert_right(record, steps[2].files)
    assert there(*[compute(Store(place), one) for one in steps[:1]]) == [True]
    user.close()


def test_a_record_that_came_with_the_list_keeps_its_output(store: Store, place: Path) -> None:
    """Catches a record without its output: somebody published it anew between a look at the list and the record, which
    no run shows."""
    a, b, _ = runs(store)
    first = User(place)
    commit = first.store._commit

    def late(record: Record, file: Path) -> Record:
        assert clear(store).waiting == 2
        return commit(record, file)

    first.store._commit = late  # type: ignore[method-assign]
    made = publish(first.store, {**a.payload, "version": 2}, {"out.txt": b"a"})
    first.close()
    with User(place) as second:
        assert clear(store).records == 1 and there(made, b) == [True, False]
        assert second.store.lookup(made.stage, made.key) == made and verify(store) == []


@as_root
def test_who_may_only_read_is_waited_for(store: Store, place: Path) -> None:
    """Catches a reader of another user, who can mark nothing, under whom outputs go; one who cannot read the list, and
    a lock that nobody may take and that counts as free."""
    a, b, _ = runs(store)
    subprocess.run(["chmod", "-R", "go+rX", str(place)], check=True)
    with User(place):
        clear(store)
        after = User(place)
        clear(store)

    def read() -> object:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        reader = User(place)
        assert reader.store.lookup("generate", a.key)
        return reader

    with racing.living(read):
        assert clear(store).waiting == 2 and all(there(a, b))
    assert clear(store).records == 2 and there(a, b) == [False, False]
    after.close()


def test_a_lock_that_cannot_be_had_is_waited_for(store: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a lock of somebody else that cannot be opened and counts as one that nobody holds."""
    a, b, _ = runs(store)
    with User(place):
        clear(store)
    opened = fs.open_lock

    def refused(path: Path) -> int:
        if path.name == "gc-first":
            raise PermissionError(errno.EACCES, "permission denied", str(path))
        return opened(path)

    with User(place), monkeypatch.context() as patch:
        patch.setattr(fs, "open_lock", refused)
        assert clear(store).waiting == 2 and all(there(a, b))


def test_who_may_only_read_goes_on(store: Store, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a look-up that fails where no mark can be written."""
    a, _, _ = runs(store)
    with User(place):
        clear(store)
        monkeypatch.setattr(fs, "write_file", _refused)
        assert Store(place).lookup("generate", a.key)


def _refused(path: Path, data: bytes, mode: int = 0) -> None:
    raise PermissionError(errno.EACCES, "permission denied", str(path))


def test_a_damaged_list_is_a_sentence(store: Store, place: Path) -> None:
    """Catches a list that is taken for empty: who cannot read the epoch is not waited for."""
    runs(store)
    with User(place):
        clear(store)
    battery.overwrite(store.root / "condemned/list.json", b"{}")
    with pytest.raises(StoreError, match=r"list\.json: not what gc wrote; delete it when no run uses the store"):
        Store(place).lookup("generate", "0" * 64)


def test_two_gcs_and_a_verify_do_not_meet(store: Store, place: Path) -> None:
    """Catches two gcs in use at once, and a verify that takes what is just going for torn."""
    runs(store)
    with User(place):
        clear(store)

        def second(trees: list[Path]) -> list[Path]:
            with pytest.raises(StoreError, match="another gc, or a verify, is at work"):
                clear(Store(place))
            return trees

        assert verify(store, track=second) == []
