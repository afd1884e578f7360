"""Runs with several answers to a row: the true DAG over the true stages, in this process and as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.plan import planned
from spin_core.config.profile import Config, parse
from spin_core.data.rows import parts_of
from spin_core.data.token_file import TokenFile
from spin_core.job import Entry
from spin_core.modeling.sampled_logps import CHECKED, TOLERANCE
from spin_core.store.store import Store
from tests.flows.test_loss_steps import SMALL, computed, of, store

__all__ = ["store"]  # a fixture
N = 3
CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {"order": "prompts", "engine_logps": True},
    "tspin": {"loss": "tspin", "order": "prompts", "tspin": {"reference_free": False}},
    "tpaw": {"loss": "tpaw", "order": "prompts"},
    "dft": {"loss": "dft"},
}


def several(iterations: int = 2, pick: str = "all", **finetune: Any) -> Config:
    """N answers to each row."""
    part = {"lr": 1e-4, "schedule_epochs": 1, "global_batch": 16, "max_length": 80, "warmup_ratio": 0.0, **finetune}
    generate = {**SMALL["generate"], "n": N, "logprobs": True}
    changed = {"iterations": iterations, "finetune": part, "generate": generate, "gather": {"pick": pick}}
    return parse({**SMALL, **changed}, "test")


def summary_of(store: Store, entry: Entry) -> dict[str, Any]:
    record = store.record(entry.stage, entry.key)
    assert record is not None
    return dict(record.facts["summary"])


def tree_of(store: Store, ledger: list[Entry], stage: str, label: str) -> Path:
    (digest,) = {entry.digest for entry in ledger if (entry.stage, entry.label) == (stage, label)}
    return store.tree(digest)


@pytest.mark.parametrize("name", CASES)
def test_a_run_learns_from_all_answers(name: str, store: Store) -> None:
    """Catches a stage that takes one pair of a row for all (an evaluate that has no row for a pair, a dft with an
    example for each answer, a third answer of none), pairs of a prompt that are not together, and a second run that
    computes anything."""
    config = several(**CASES[name])
    ledger = computed(config, store)
    finetunes = [summary_of(store, entry) for entry in ledger if entry.stage == "finetune"]
    tokens = tree_of(store, ledger, "tokenize", "")
    rows = {split: len(TokenFile(tokens / f"{split}_tokens.arrow")) for split in ("train", "test")}
    gathered = TokenFile(tree_of(store, ledger, "gather", "iter 1") / "train_tokens.arrow")
    assert len(gathered) == N * rows["train"] and len({parts_of(id)[0] for id in gathered.ids}) == rows["train"]
    if name == "dft":
        assert [one["pairs"] for one in finetunes] == [rows["train"]] * 2
    else:
        assert [one["pairs"] for one in finetunes] == [N * rows["train"], 2 * N * rows["train"]]
        assert [one["groups"] for one in finetunes] == [rows["train"]] * 2
        metrics = (tree_of(store, ledger, "finetune", "iter 1") / "metrics.jsonl").read_text().splitlines()
        assert sum(json.loads(line)["pairs"] for line in metrics) == 2 * N * rows["train"]
    if name == "sigmoid":
        measured = tree_of(store, ledger, "evaluate", "θ_2")
        margins = [json.loads(line)["margin"] for line in (measured / "rows.jsonl").read_text().splitlines()]
        expected = json.loads((measured / "metrics.json").read_text())["spin/margin"]
        assert len(margins) == rows["test"] and sum(margins) / len(margins) == pytest.approx(expected, abs=1e-9)
    assert {entry.state for entry in computed(config, store)} == {"Cached"}


def test_another_pick_draws_nothing_again(store: Store) -> None:
    """Catches a pick that is part of the answers' key, and one that trains on all of them."""
    computed(several(1), store)
    ledger = computed(several(1, "hardest"), store)
    assert not of(ledger, "generate") and of(ledger, "gather") == ["iter 0"]
    (trained,) = [summary_of(store, entry) for entry in ledger if entry.stage == "finetune"]
    assert trained["pairs"] == len(TokenFile(tree_of(store, ledger, "tokenize", "") / "train_tokens.arrow"))


def test_plan_says_what_is_in_no_pair_before_and_after(tmp_path: Path) -> None:
    """Catches answers that are left out without a word in the plan: of a run that is ahead, and of pairs that are
    there."""
    config, own = several(1, "first"), Store(tmp_path / "own")
    before = planned(config, str(tmp_path / "none"), tmp_path).notes
    assert [note for note in before if "no pair" in note] == [
        f"gather.pick: of {N} answers to a prompt {N - 1} will be in no pair (iteration 0)."
    ]
    computed(config, own)
    after = [note for note in planned(config, str(own.root.parent), tmp_path).notes if "no pair" in note]
    assert len(after) == 1 and after[0].startswith("gather[iter 0]: 56 answers to 28 prompts are in no pair")
    assert not [note for note in planned(several(1), str(own.root.parent), tmp_path).notes if "no pair" in note]


def test_log_probs_of_several_answers_come_from_the_engine(run, tmp_path: Path) -> None:
    """Catches a run in which score computes what the engine gave (for all answers, or for all but a row's first), a
    row's second answer with the log-prob of its first, and log-probs that are not those that score computes: through
    the real flow, its processes and the store."""
    few = ("iterations=1", "sft=", "finetune.order=prompts", "evaluate.answers=false", "evaluate.exact_match=")
    several = (*few, "dataset.limit=40", f"generate.n={N}", "generate.logprobs=true")
    store = tmp_path / "store"
    taking, computing = (run(store, *several, f"finetune.engine_logps={on}") for on in ("true", "false"))
    trees = store / "spinloop-store-v1" / "trees"
    (ours,), (theirs,) = ([one for one in steps if one["stage"] == "score"] for steps in (taking, computing))
    (pairs,) = {one["digest"] for one in taking if one["stage"] == "gather"}
    assert {one["state"] for one in computing if one["stage"] in ("generate", "gather")} == {"Cached"}
    drawn = {
        (line["split"], line["id"]): line["logps"]
        for line in map(json.loads, (trees / pairs / "engine_logps.jsonl").read_text().splitlines())
    }
    scored = [pq.read_table(trees / one["digest"] / "logps.parquet").to_pylist() for one in (ours, theirs)]
    by_id = [{(line["split"], line["id"]): line["generated"] for line in lines} for lines in scored]
    assert by_id[0].keys() == by_id[1].keys() == drawn.keys() and len({parts_of(id)[1] for _, id in drawn}) == N
    same = {key for key, logp in by_id[0].items() if logp == drawn[key]}
    assert ours["summary"]["engine_logps"] == len(drawn) - CHECKED > 0 == theirs["summary"]["engine_logps"]
    assert len(same) >= len(drawn) - CHECKED and any(parts_of(id)[1] == N - 1 for _, id in same)
    assert max(abs(by_id[0][key] - by_id[1][key]) for key in drawn) < TOLERANCE
    assert len(set(drawn.values())) > len(drawn) / 2
    trained = [one["summary"] for steps in (taking, computing) for one in steps if one["stage"] == "finetune"]
    assert trained[0]["pairs"] == trained[1]["pairs"] == N * trained[0]["groups"]
