"""A dataset that grows and changes: what a plan says is what the run then does, and only what changed is answered."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest

from spin_core.config.chat import ChatSection
from spin_core.runtime.step import Step
from spin_core.stages import generate
from spin_core.store.store import Record, Store
from tasks.runner.throughput import Throughput
from tests.places import place

ROWS = [{"prompt": f"Reverse: {i:04d}", "response": f"{i:04d}"[::-1]} for i in range(300)]


def grown(rows: list[dict]) -> list[dict]:
    """1 % more."""
    return [*rows, *({"prompt": f"Reverse: more {i}", "response": "erom"} for i in range(3))]


def shrunk(rows: list[dict]) -> list[dict]:
    """5 fewer."""
    return [row for i, row in enumerate(rows) if i not in (7, 8, 90, 91, 299)]


def edited(rows: list[dict]) -> list[dict]:
    """5 prompts with another text."""
    return [{**row, "prompt": row["prompt"] + "!"} if i % 60 == 11 else row for i, row in enumerate(rows)]


def shuffled(rows: list[dict]) -> list[dict]:
    """The same in another order."""
    return random.Random(0).sample(rows, len(rows))


@pytest.fixture
def at(spinloop, server, tiny, model, tmp_path):
    """`at(command, rows)`: the steps of generate that a plan or a run of these rows reports, and its full JSON."""
    data, store = tmp_path / "data.jsonl", tmp_path / "store"
    settings = [f"dataset.path={data}", "dataset.limit=0", f"model.path={model}", "sft=", "iterations=1"]
    # As little as can be of all that is not generated: five runs of it.
    settings += ["generate.max_new_tokens=3", "evaluate.max_new_tokens=1", "runtime.checkpoint_every=0"]
    settings += ["finetune.global_batch=150", "runtime.micro_tokens=8192"]
    sets = [part for setting in settings for part in ("--set", setting)]

    def call(command: str, rows: list[dict]) -> tuple[list[dict], list[dict], Path]:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, out, err = spinloop(command, tiny, "--store", store, "--json", *sets)
        assert code == 0, err
        folder = Path(json.loads(out)["folder"]) if command == "run" else store
        steps = json.loads(out) if command == "plan" else json.loads((folder / "steps.json").read_text())
        return [step for step in steps if step["stage"] == "generate"], steps, folder

    return call


def answers(store: Path, steps: list[dict]) -> dict[str, dict]:
    """Every answer of these steps by its row's id."""
    trees = store.parents[1] / "trees"
    lines = [line for s in steps for line in (trees / s["digest"] / "answers.jsonl").read_text().splitlines()]
    return {answer["id"]: answer for answer in map(json.loads, lines)}


@pytest.mark.full
def test_changed_dataset_plan_counts_what_the_run_then_answers(at) -> None:
    """Catches: a plan that guesses, a full set generated again for a few rows, and answers that change because their
    shard did."""
    shards, _, folder = at("run", ROWS)
    before, rows = answers(folder, shards), ROWS
    lines = [f"first run: {len(shards)} shards, {len(before)} rows"]
    for change in (grown, shrunk, edited, shuffled):
        rows = change(rows)
        planned, plan, _ = at("plan", rows)
        would = [step for step in planned if step["state"] == "would run"]
        done, _, folder = at("run", rows)
        ran = [step for step in done if step["state"] == "ran"]
        lines.append(f"{change.__name__}: {counts(ran)} of {counts(done)} ran")
        assert {step["label"] for step in would} == {step["label"] for step in ran} and len(planned) == len(done)
        assert sum(step["summary"]["rows"] for step in would) == sum(step["summary"]["answers"] for step in ran)
        assert sum(step["summary"]["rows"] for step in planned) == sum(step["summary"]["answers"] for step in done)
        assert plan[0]["stage"] == "reformat" and plan[0]["state"] == "would run"
        if change is shuffled:
            assert not ran and [step["stage"] for step in plan if step["state"] != "cached"] == ["reformat"]
        else:
            assert 1 <= len(ran) <= 12 and len(done) > 15
            timed = json.loads((folder / "throughput.json").read_text())["iter 0"]
            assert (timed["shards"], timed["cached"]) == (len(done), len(done) - len(ran))
            assert timed["answers"] == sum(step["summary"]["answers"] for step in ran)
        after = answers(folder, done)
        kept = before.keys() & after.keys()
        assert len(kept) >= len(before) - 10
        assert all(before[id] == after[id] for id in kept)
        before = after
    print("\n".join(lines))


def counts(steps: list[dict]) -> str:
    return f"{len(steps)} shards, {sum(step['summary']['answers'] for step in steps)} rows"


def ended(throughput, label: str, now: float, seconds: float, cached: bool = False) -> None:
    """Note a finished shard of 10 answers and 100 tokens."""
    facts = {"summary": {"answers": 10, "tokens": 100}, "seconds": seconds}
    config = generate.Config(generate=generate.Generate(), chat=ChatSection(), seed=1)
    step = Step(generate, label, config, place("generate", label))
    throughput.add(step, Record("generate", "k", {}, "d", [], facts, Path()), cached, now)


def test_throughput_is_of_the_shards_that_ran_from_first_start_to_last_end(tmp_path) -> None:
    """Catches: seconds of shards side by side added up, cached tokens counted as made, a wait counted from the first
    shard's end, and a second run that replaces the figures of the one that made the answers by nothing."""
    throughput = Throughput()
    ended(throughput, "iter 0, shard 1/4", now=105, seconds=5)
    ended(throughput, "iter 0, shard 4/4", now=101, seconds=900, cached=True)
    ended(throughput, "iter 0, shard 2/4", now=106, seconds=6)
    ended(throughput, "iter 0, shard 3/4", now=120, seconds=2)
    ended(throughput, "iter 1, shard 1/1", now=130, seconds=900, cached=True)
    figures = {"shards": 4, "cached": 1, "answers": 30, "tokens": 300, "seconds": 20, "tokens_per_second": 15.0}
    assert throughput.figures() == {"iter 0": figures | {"first_shard_seconds": 5}}
    line = (
        "generate[iter 0]: 4 shards (1 cached), 30 answers, 300 tokens in 20.0 s, 15 tokens/s; first shard after 5.0 s"
    )
    assert throughput.line(0) == line and throughput.line(1) == ""
    store, again = Store(tmp_path), Throughput()
    throughput.write(store, "tiny")
    ended(again, "iter 0, shard 1/1", now=300, seconds=5, cached=True)
    again.write(store, "tiny")
    file = store.root / "runs" / "tiny" / "throughput.json"
    assert json.loads(file.read_text()) == throughput.figures()


def files(store: Path) -> dict[str, tuple[int, int]]:
    paths = [path for path in store.rglob("*") if path.is_file()]
    return {str(p.relative_to(store)): (p.stat().st_mtime_ns, p.stat().st_ino) for p in paths}


def test_plan_of_another_dataset_leaves_the_store_and_the_temporary_folder(
    spinloop, finished, tiny, tmp_path, monkeypatch
) -> None:
    """Catches: a plan that publishes rows which nobody runs, leaves its own behind, or gives up where the dataset is
    itself a step's output (then it is read from the store); and one line a shard."""
    store = Path(shutil.copytree(finished[0], tmp_path / "store", symlinks=True))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before = files(store / "spinloop-store-v1" / "trees") | files(store / "spinloop-store-v1" / "records")
    setting = ("--set", "dataset.limit=59")
    code, out, err = spinloop("plan", tiny, "--store", store, *setting)
    assert code == 0 and "read    reformat, to see its shards; nothing is kept" in err
    after = files(store / "spinloop-store-v1" / "trees") | files(store / "spinloop-store-v1" / "records")
    assert before == after and not os.listdir(tmp_path / "temporary")
    assert "would run  reformat                dataset.limit: 60 → 59" in out
    shards = [line for line in out.splitlines() if " generate[" in line and " gather" not in line]
    assert len(shards) == 2 and "8 of 8 shards would run, 71 of 71 rows: reads what sft[θ_0] will write" in shards[0]
    code, out, err = spinloop("plan", tiny, "--store", store)
    assert code == 0 and "read " not in err, "cached rows are not cut again"
    assert "count as one step" not in err
    assert "cached     generate[iter 0]        8 shards, 72 rows " in out


def test_plan_without_its_rows_says_what_it_waits_for(spinloop, tiny, tmp_path) -> None:
    """Catches: a plan that runs more than the reading of a dataset (here demo_rows), or makes a store; and one that
    counts the shards of tokens that are still to be made as one step without a word (demo: 24 where 30 ran)."""
    code, out, err = spinloop("plan", tiny, "--store", tmp_path / "none", "--set", "iterations=2")
    assert err.count("an iteration's shards of answers count as one step") == 1
    assert code == 0 and not (tmp_path / "none").exists()
    assert "reads what demo_rows[train] will write" in out and "reads what reformat will write" in out


def test_plan_of_an_unusable_dataset_is_bad_input(spinloop, tiny, model, tmp_path) -> None:
    """Catches: a traceback, or a plan that promises steps which cannot run."""
    (tmp_path / "data.jsonl").write_text('{"text": "q"}\n')
    sets = [f"dataset.path={tmp_path / 'data.jsonl'}", f"model.path={model}", "sft="]
    code, _, err = spinloop(
        "plan", tiny, "--store", tmp_path / "store", *[part for setting in sets for part in ("--set", setting)]
    )
    assert code == 2 and "its columns are text" in err and "Traceback" not in err


@pytest.mark.full
def test_plan_names_text_that_no_row_has(spinloop, tiny, model, tmp_path) -> None:
    """Catches a plan that lets a table, or a field of messages, go without a word."""
    rows = [{"question": f"What is {i}?", "sql": "CREATE TABLE t", "answer": f"It is {i}."} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = [f"dataset.path={tmp_path / 'data.jsonl'}", f"model.path={model}", "sft=", "dataset.test_fraction=0.3"]
    code, _, err = spinloop(
        "plan", tiny, "--store", tmp_path / "store", "--json", *[p for setting in sets for p in ("--set", setting)]
    )
    note = "text that no row has (in how many records): sql (40); to add one to the prompt: dataset.columns {prompt: "
    assert code == 0 and f"note: source: {note}question, answer: answer, context: sql}}." in err
