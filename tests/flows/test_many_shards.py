"""More shards than there should be tasks: several in one, and each still has its own key, record and ledger line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks.runner import shards

SETTINGS = ("iterations=1", "dataset.shard_rows=4", "dataset.limit=56", "generate.max_new_tokens=1")


@pytest.mark.parametrize("count", [1, 500, 501, 750, 1000, 5000, 20_000])
def test_per_task_shards_grow_and_tasks_do_not(count):
    """Catches: a task for each of 5,000 shards, whose events the server has not written when the run ends; and one task
    for all, which leaves every worker but one idle."""
    tasks = -(-count // shards.per_task(count))
    assert tasks == count if count <= shards.ALONE else shards.TASKS / 2 < tasks <= shards.TASKS


@pytest.fixture
def few_tasks(monkeypatch):
    """Four tasks for more than eight shards."""
    monkeypatch.setattr(shards, "ALONE", 8)
    monkeypatch.setattr(shards, "TASKS", 4)


def generated(steps: list[dict]) -> dict[str, tuple[str, str, str]]:
    return {s["label"]: (s["key"], s["state"], s["digest"]) for s in steps if s["stage"] == "generate"}


@pytest.mark.full
def test_run_with_shared_tasks_keeps_every_shard_its_own(spinloop, run, tiny, few_tasks, tmp_path, monkeypatch):
    """Catches: shards that share a key or a record because they share a task; one missing answer that makes its
    neighbours run again; gather given other answers, or in another order, than from a task each; a line of the terminal
    and a task run for each of thousands of shards, and a group without a word."""
    from prefect.client.orchestration import get_client

    store = tmp_path / "store"
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    code, out, err = spinloop("run", tiny, "--store", store, "--json", *sets)
    assert code == 0, err
    first = generated(json.loads(Path(json.loads(out)["folder"], "steps.json").read_text()))
    count = len(first)
    assert count > shards.ALONE and len({key for key, _, _ in first.values()}) == count
    assert {state for _, state, _ in first.values()} == {"ran"}
    assert list(first) == [f"iter 0, shard {n}/{count}" for n in range(1, count + 1)]
    assert f"{count} of {count} shards, 0 of them cached" in err
    assert "iter 0, shard " not in err
    with get_client(sync_client=True) as client:
        names = {run.name for run in client.read_task_runs(limit=200)}
    assert f"generate[iter 0, shards 1-{shards.per_task(count)}/{count}]" in names

    gone = f"iter 0, shard {count // 2}/{count}"
    key, _, digest = first[gone]
    root = store / "spinloop-store-v1"
    (root / "records" / "generate" / f"{key}.json").unlink()
    shutil.rmtree(root / "trees" / digest)
    again = generated(run(store, *SETTINGS))
    assert [label for label, (_, state, _) in again.items() if state == "ran"] == [gone]

    monkeypatch.setattr(shards, "ALONE", 500)
    alone = run(store, *SETTINGS)
    assert {step["state"] for step in alone} == {"Cached"}
    assert {label: one[::2] for label, one in generated(alone).items()} == {
        label: one[::2] for label, one in first.items()
    }
