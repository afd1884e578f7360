"""`spinloop store verify --recompute`: steps of a run are computed again from what the store has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.recompute import Inputs, Lacking, described, keyed_of
from spin_core.config.runtime import Runtime
from spin_core.config.stage_table import COMPUTING
from spin_core.job import Entry
from spin_core.report.run_facts import read_run
from spin_core.runtime.redo import promised
from spin_core.store.record import Record
from spin_core.store.store import Store


@pytest.fixture
def store(finished, tmp_path) -> Store:
    shutil.copytree(finished[0], tmp_path / "store", symlinks=True)
    return Store(tmp_path / "store")


def step(store: Store, stage: str, t: int | None = None) -> Entry:
    return next(one for one in read_run(store).steps if one.stage == stage and t in (None, one.place.iteration))


def planted(store: Store, entry: Entry, change: Callable[[Path], object], **facts: Any) -> Record:
    """The step's record and output are changed: another program's, or another machine's."""
    record = store.record(entry.stage, entry.key)
    assert record is not None
    (store.root / "records" / record.stage / f"{record.key}.json").unlink()
    tree = store.new_tree()
    for file in record.files:
        (tree / file["path"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.path / file["path"], tree / file["path"])
    change(tree)
    return store.publish(record.payload, tree, record.facts | facts)


def appended(name: str) -> Callable[[Path], object]:
    return lambda tree: (tree / name).write_text((tree / name).read_text() + " ")


def test_every_step_is_made_of_its_record(store) -> None:
    """Catches an input that cannot be named by its digest (a shard, a tokenizer, a list), a setting that is read back
    as another one, and a runtime that is not the one of then: micro-batches of other sizes round otherwise."""
    run = read_run(store)
    inputs = Inputs(store, run)
    kinds = set()
    for entry in run.steps:
        record, runtime = described(store, entry, {})
        keyed = keyed_of(record, entry, inputs)
        assert keyed.key == entry.key
        for value in keyed.inputs.values():
            for ref in value if isinstance(value, list) else [value]:
                assert ref.locate(store).exists()
        assert (runtime.threads, runtime.micro_tokens, runtime.device) == (1, 1024, "cpu")
        assert promised(record, runtime)
        assert promised(record, Runtime()) == (entry.stage not in COMPUTING)
        kinds.add(entry.stage)
    assert {"sft", "generate", "score", "finetune", "evaluate", "gate", "report", "tokenize", "reformat"} <= kinds


def test_bytes_are_promised_for_this_machine_alone(store) -> None:
    """Catches a difference that fails a check on a machine that never promised the same bytes, and one that passes
    because anything may have changed."""
    entry = step(store, "finetune", 1)
    record, runtime = described(store, entry, {})

    def with_facts(**facts: Any) -> Record:
        return Record(**{**vars(record), "facts": record.facts | facts})

    made = record.facts["provenance"]
    assert promised(record, runtime)
    assert promised(with_facts(provenance={**made, "versions": {**made["versions"], "prefect": "0"}}), runtime)
    others = (
        {"provenance": {**made, "versions": {**made["versions"], "torch": "0"}}},
        {"provenance": {**made, "machine": {**made["machine"], "cpus": 512}}},
        {"provenance": {}},
        {"device": {"gpus": 1, "name": "H200"}},
        {"runtime": {"threads": 2}},
        {"runtime": None},
    )
    for facts in others:
        assert not promised(with_facts(**facts), runtime), facts
    gate = store.record("gate", step(store, "gate").key)
    assert gate is not None and promised(Record(**{**vars(gate), "facts": gate.facts | {"device": None}}), Runtime())


def test_what_comes_of_each_step_is_said(store, spinloop) -> None:
    """Catches a check that only looks steps up, a changed output that passes, one that fails where the same bytes were
    never promised, a step whose input is gone that fails all others or is computed from something else, and a GPU's
    step that is compared with what a CPU makes."""

    def verify(*asked: str) -> tuple[int, list[str], str]:
        given = [part for one in asked for part in ("--recompute", one)]
        code, out, err = spinloop("store", "verify", "--store", store.root.parent, *given)
        return code, out.splitlines(), err

    code, lines, err = verify("latest:tokenize", "latest:gather", "latest:finetune:1", "latest:gate:1")
    assert code == 0, err
    assert all(line.startswith("same ") for line in lines[:-1]) and len(lines) == 6, lines
    assert lines[-1] == "5 steps: 5 came out the same, 0 otherwise, 0 could not be computed."

    gate, first = step(store, "gate", 0), step(store, "generate", 0)
    stands = planted(store, gate, appended("decision.json"))
    planted(store, first, appended("answers.jsonl"), provenance={})
    planted(store, step(store, "generate", 1), appended("answers.jsonl"), device={"gpus": 1, "name": "H200"})
    code, lines, err = verify("latest:gate:0", "latest:generate")
    assert code == 1 and "gate[iter 0]: should come out the same on this machine and did not" in err
    said = {line[10:].partition(":")[0]: line for line in lines}
    assert said["gate[iter 0]"].startswith("differs   gate[iter 0]: decision.json (should be the same here)")
    assert "answers.jsonl (the same bytes are not promised here" in said[first.title]
    other = said[step(store, "generate", 1).title]
    assert other.startswith("not done ") and other.endswith("it was computed on a GPU (H200), and there is none here")
    assert lines[-1].endswith("2 otherwise, 1 could not be computed.")
    assert store.lookup("gate", gate.key).digest == stands.digest, "what stood is overwritten"
    assert len([*(store.root / "records" / "gate").glob(f"{gate.key}.nondeterministic-*")]) == 1
    code, lines, err = verify("latest:generate:0")
    assert code == 0, err

    pairs = store.tree(step(store, "gather", 1).digest)
    pairs.chmod(0o755)
    shutil.rmtree(pairs)
    code, lines, err = verify("latest:gather:0", "latest:score:1", "latest:tokenize")
    assert code == 0 and {line.split()[0] for line in lines[:-1]} == {"not", "same"}, lines
    assert f"its input answers ({first.digest[:12]}) is not in the store" in lines[0]
    assert any(f"its input pairs ({pairs.name[:12]}, made by gather) is not whole in" in line for line in lines)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--recompute", "latest:gates"], "--recompute latest:gates: there is no such stage"),
        (["--recompute", "latest:gate:x"], "--recompute latest:gate:x: write an iteration"),
        (["--recompute", "latest:gate:7"], "--recompute latest:gate:7: this run has no such step; it has "),
        (["--recompute", "other:gate"], "other: there is no such run"),
        (["--recompute", "latest", "--deep"], "give one of --deep"),
        (["--recompute", "latest:gate", "--set", "finetune.beta=1"], "only runtime can be set here"),
        (["--recompute", "latest:gate", "--set", "runtime.threads=x"], "--set runtime.threads: "),
        (["--recompute", "latest:gate", "--set", "runtime.no=1"], "--set runtime.no: "),
        (["--set", "runtime.threads=1"], "--set goes with --recompute"),
    ],
)
def test_wrong_request_is_one_sentence(store, spinloop, given, says) -> None:
    """Catches a step that is passed over in silence, and hours of computing before the sentence."""
    code, out, err = spinloop("store", "verify", "--store", store.root.parent, *given)
    assert code == 2 and says in err and "Traceback" not in err and not out
    assert len(err.strip().splitlines()) == 1


def test_step_of_another_version_or_store_is_not_computed(store, spinloop) -> None:
    """Catches a step of another VERSION that is computed by this one and called different, and a module that a record
    names and that is imported."""
    run = read_run(store)
    steps = json.loads((store.root / "latest" / "steps.json").read_text())
    gate = store.record("gate", step(store, "gate").key)
    assert gate is not None
    older: Any = {**gate.payload, "version": 999}
    strange: Any = {**gate.payload, "stage": "antigravity"}
    for payload in (older, strange):
        tree = store.new_tree()
        (tree / "decision.json").write_text("{}")
        made = store.publish(payload, tree, gate.facts)
        steps.append({**steps[-1], "stage": made.stage, "key": made.key, "digest": made.digest, "label": "x"})
    file = store.root / "runs" / run.name / "steps.json"
    file.chmod(0o644)
    file.write_text(json.dumps(steps))
    inputs, said = Inputs(store, read_run(store)), []
    for entry in read_run(store).steps[-2:]:
        with pytest.raises(Lacking) as raised:
            keyed_of(described(store, entry, {})[0], entry, inputs)
        said.append(str(raised.value))
    assert said[0].startswith("version 999 of the stage computed it") and said[1] == "this spinloop has no such stage"
