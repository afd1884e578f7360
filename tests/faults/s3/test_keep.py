"""Pins, a policy, forgotten runs and gc by them on a store on S3: seen by every machine, and heeded by gc."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from flows.keeping import clear, pinned, policy_of, write_policy
from spin_core.analysis.account import file_of, name_of
from spin_core.errors import BadInput
from spin_core.store import keep, leases
from spin_core.store.s3 import gc as remote_gc
from spin_core.store.s3.remote import RemoteStore
from tests.faults.s3.test_clearing import chain
from tests.faults.store.battery import assert_right, compute

NOW = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.fixture
def filled(at, monkeypatch) -> RemoteStore:
    """Three runs of two steps each, begun 100, 50 and 1 days ago; the second step is the best. No lease is there."""
    monkeypatch.setattr(leases.Lease, "_begin", lambda self: None)
    store = at("a")
    for n, days in enumerate((100, 50, 1)):
        made = [compute(store, step) for step in chain(f"a{n}", f"b{n}")]
        store.link_run(f"run-{n}", {"1-finetune-iter-0": made[0].digest, "best": made[1].digest})
        name = name_of(NOW - timedelta(days=days), f"{n:06x}")
        store.write_run_file(f"run-{n}", name, file_of("p", {"total": {}, "lines": []}))  # type: ignore[arg-type]
    return store


def there(store: RemoteStore) -> set[str]:
    return {str(record.payload["config"]["name"]) for record in store.records()}


def test_gc_by_age_and_pins_of_another_machine(filled, at) -> None:
    """Catches a pin that only the machine that set it sees, and a best model or pinned run that goes."""
    filled.write_run_file("run-0", keep.PINNED, b"pinned\n")
    other = at("b")
    assert pinned(other) == ["run-0"]
    remote_gc.gc(other, keep_runs=3)
    assert there(other) == {"a0", "b0", "a1", "b1", "a2", "b2"}
    made = clear(other, keep.parse({"older_than": "30d"}, "x"), now=NOW)
    assert list(made.decision.forget) == ["run-1"] and there(other) == {"a0", "b0", "b1", "a2", "b2"}
    other.remove_run_file("run-0", keep.PINNED)
    assert pinned(at("c")) == []
    filled.write_run_file("run-2", keep.PINNED, b"pinned\n")
    remote_gc.gc(other, keep_runs=0)
    assert there(filled) == {"b0", "b1", "a2", "b2"}
    filled.remove_run_file("run-2", keep.PINNED)
    clear(at("c"), keep.parse({"older_than": "30d"}, "x"), now=NOW)
    assert there(filled) == {"b0", "b1", "a2", "b2"}
    for n in range(3):
        step = chain(f"a{n}", f"b{n}")[1]
        assert_right(at("d").lookup("finetune", step.key), step.files)


def test_gc_by_size(filled, at) -> None:
    """Catches bytes that are counted otherwise than du counts them, and more given up than is needed."""
    total = sum(stat.size for stat in filled.objects.listed("files/"))
    small = len(chain("a0")[0].files["w"])
    made = clear(filled, keep.parse({"max_size": f"{total - 1}B"}, "x"), now=NOW)
    assert list(made.decision.forget) == ["run-0"] and there(filled) == {"b0", "a1", "b1", "a2", "b2"}
    assert made.result.bytes == small and made.decision.size == total - small
    with pytest.raises(BadInput, match="must stay: the best models of 3 runs take"):
        clear(filled, keep.parse({"max_size": "10B"}, "x"), now=NOW)
    assert there(filled) == {"b0", "a1", "b1", "a2", "b2"}


def test_policy_and_forgotten_runs_are_the_services(filled, at) -> None:
    """Catches a policy in one machine's cache, and a run that comes back after it was forgotten."""
    write_policy(filled, {"older_than": "30d", "keep_runs": 2})
    assert policy_of(at("b")) == {"older_than": "30d", "keep_runs": 2}
    filled.forget_run("run-0")
    other = at("b")
    assert [stat.key for stat in other.objects.listed("runs/run-0/")] == []
    clear(other, keep.parse(policy_of(other), "x"), now=NOW)
    assert there(filled) == {"a1", "b1", "a2", "b2"}
