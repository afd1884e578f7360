"""Provenance, sources and keys: what is recorded beside a result, when a source counts as changed, how often a key is
made."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from spin_core.config.runtime import Runtime
from spin_core.errors import StageFailed
from spin_core.job import Entry, Place
from spin_core.runtime import step
from spin_core.runtime.child import Children
from spin_core.runtime.step import Step, in_words
from spin_core.sources.resolve import resolve
from spin_core.stages import demo_rows
from spin_core.store import keys
from spin_core.store import store as stores
from tasks.runner.stage import _run_name, perform
from tasks.runner.steps import Steps


def test_provenance_without_git_is_not_a_failure(monkeypatch):
    """Catches hours of finished work lost because the machine has no git."""
    monkeypatch.setenv("PATH", "/nonexistent")
    step.provenance.cache_clear()
    assert step.provenance()["commit"] is None
    step.provenance.cache_clear()


def test_source_edited_while_it_is_read_fails_the_step(tmp_path: Path):
    """Catches a result of a half-edited file that is published under the key of the file as it was before."""
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "response": "b"}\n')
    ref = resolve(str(data), "dataset", "", tmp_path, "")
    step._sources_unchanged({"source": ref})
    data.touch()
    step._sources_unchanged({"source": ref})
    data.write_text('{"prompt": "a", "response": "c"}\n')
    with pytest.raises(StageFailed, match=r"rows\.jsonl: changed while it was being read"):
        step._sources_unchanged({"source": ref})


def test_missed_step_makes_its_key_once(tmp_path: Path, monkeypatch):
    """Catches a key that is made again for the task's name, the look-up, the one under the lock and the record: a step
    that reads 500 shards took five times as long to find out that it is missing."""
    made = []

    def counted(payload: dict) -> str:
        made.append(payload)
        return key_of(payload)

    key_of = keys.key_of
    monkeypatch.setattr(keys, "key_of", counted)
    monkeypatch.setattr(stores, "key_of", counted)
    monkeypatch.setattr("tasks.runner.stage.get_run_logger", lambda: logging.getLogger("test"))
    store, config = stores.Store(tmp_path), demo_rows.Config(seed=1, split="test")
    with store.using(), Children(1) as children:
        run = Steps(store, children, Runtime())
        missing = Step(demo_rows, "test", config, Place())
        name = _run_name({"run": run, "step": missing, "inputs": {}})
        ref, cached = perform(run, run.keyed(missing, {}), None, last=True)
    (entry,) = run.ledger
    assert not cached and entry.digest == ref.digest and name == f"demo_rows[test] {entry.key[:6]}"
    assert len(made) == 1, f"the key was made {len(made)} times"


def test_steps_of_one_title_have_keys_of_their_own(tmp_path: Path):
    """Catches a pool's flow run, started by hand without labels, whose second step takes the first one's key."""
    run = Steps(stores.Store(tmp_path), Children(0), Runtime())
    first, second = (Step(demo_rows, "", demo_rows.Config(seed=seed, split="test")) for seed in (1, 2))
    assert run.keyed(first, {}).key != run.keyed(second, {}).key
    assert run.keyed(first, {}) is run.keyed(first, {})


def test_entry_comes_back_from_json_with_its_place():
    """Catches a ledger whose file loses what each step was for, or a shard that is no pair of numbers any more."""
    entry = Entry(
        "generate", "iter 1, shard 2/8", "k", "ran", 1.5, "d", "", {"rows": 3}, Place("iteration", 1, shard=(2, 8))
    )
    assert Entry.from_json(json.loads(json.dumps(entry.as_json()))) == entry
    assert entry.as_json()["place"] == {"role": "iteration", "iteration": 1, "shard": [2, 8]}


def test_summary_in_a_log_has_no_python_in_it() -> None:
    """Catches `rejected {}` and a dictionary with 16 digits in what a person reads while a run is at work."""
    summary = {"steps": 8, "loss/last": 0.24391, "rejected": {}, "alarms": [], "cut": {"long": 2, "share": 0.81666667}}
    assert in_words(summary) == "steps 8, loss/last 0.2439, rejected none, alarms none, cut (long 2, share 0.8167)"
    assert in_words({"alarms": ["a", {"b": 0.81666667}]}) == "alarms (a; (b 0.8167))"
