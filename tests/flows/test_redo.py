"""`--redo`: a step is computed again on purpose, and what stands in the store stays; with `--replace` later runs go on
from the new output."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flows import stages as pool_flows
from spin_core.config.finetune import Finetune
from spin_core.config.profile import parse as parsed
from spin_core.config.runtime import Runtime
from spin_core.config.stage_table import ORDER
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Place
from spin_core.runtime.child import Children
from spin_core.runtime.redo import Redone, recompute, replace
from spin_core.runtime.step import KeyedStep, Step, look_up
from spin_core.stages import demo_rows, finetune
from spin_core.store.store import Record, Store
from tasks.runner.redo import parse
from tests.flows.fixtures import TINY
from tests.flows.test_trackers_run import curves


@pytest.mark.full
def test_every_stage_of_a_run_comes_out_the_same(spinloop, server, finished, tiny, tmp_path) -> None:
    """Catches a `--redo` that only looks the step up, a stage whose bytes depend on the clock, the process or a cache,
    and a step that was not asked for and runs."""
    store = tmp_path / "store"
    shutil.copytree(finished[0], store, symlinks=True)
    stages = [name for name in ORDER if any(step["stage"] == name for step in finished[1])]
    asked = [f"{stage}:1" if stage in ("generate", "score", "finetune") else stage for stage in stages]
    given = [part for stage in asked for part in ("--redo", stage)]
    before = {file: file.read_bytes() for file in store.glob("spinloop-store-v1/records/*/*.json")}
    code, out, err = spinloop("run", tiny, "--store", store, "--json", *given)
    assert code == 0, err
    notes = json.loads(out)["notes"]
    again = [note for note in notes if "computed again" in note]
    assert all(note.endswith("computed again, the same bytes.") for note in again), again
    redone = {note.partition("[")[0].partition(":")[0] for note in again}
    assert redone == set(stages)
    ran = {
        step["label"] for step in json.loads(out_steps(out)) if step["state"] == "ran" and step["stage"] == "finetune"
    }
    assert ran == {"iter 1"}
    assert {file: file.read_bytes() for file in store.glob("spinloop-store-v1/records/*/*.json")} == before


def out_steps(out: str) -> str:
    return Path(json.loads(out)["folder"], "steps.json").read_text()


def test_training_computed_again_with_a_tracker_sends_it_nothing(spinloop, server, finished, tiny, tmp_path) -> None:
    """Catches a training that cannot be computed again where the run has a tracker, and a curve that is then on the
    board twice."""
    pytest.importorskip("tensorboard")
    store = tmp_path / "store"
    shutil.copytree(finished[0], store, symlinks=True)
    board = ("--set", "runtime.trackers=[tensorboard]")
    code, out, err = spinloop("run", tiny, "--store", store, "--json", *board, "--redo", "finetune:0")
    assert code == 0, err
    assert [note for note in json.loads(out)["notes"] if "computed again, the same bytes." in note]
    trained = [Store(store).tree(step["digest"]) for step in finished[1] if step["stage"] == "finetune"]
    steps = sum(len((tree / "metrics.jsonl").read_text().splitlines()) for tree in trained)
    assert len(curves(store)["finetune/loss"]) == steps > 2


def test_another_output_is_named_and_kept_beside_the_first(tmp_path: Path) -> None:
    """Catches a first output that is overwritten, a difference that is not seen, and a file that is named though it is
    the same."""
    store = Store(tmp_path / "store")
    config = demo_rows.Config(seed=3, split="train", **demo_rows.SETS["builtin:tasks"])
    keyed = KeyedStep(Step(demo_rows, "train", config), {})
    with Children(1) as children:
        with pytest.raises(StageFailed, match="no output to compare with"):
            recompute(store, keyed, Runtime(), children, lambda event: None)
        other = store.new_tree()
        (other / "notes.txt").write_text("of another day")
        first = store.publish(keyed.payload, other, {}, keyed.key)
        made = recompute(store, keyed, Runtime(), children, lambda event: None)
        differing = made.differing
        assert (
            made.record.digest == first.digest
            and made.take == 0
            and store.lookup("demo_rows", keyed.key).digest == first.digest
        )
        assert "notes.txt" in differing and len(differing) >= 2
        (evidence,) = (store.root / "records" / "demo_rows").glob("*.nondeterministic-*.json")
        assert store.tree(json.loads(evidence.read_text())["digest"]).is_dir()


@pytest.mark.parametrize(
    ("text", "says"), [("finetunes", "stages are"), ("finetune:x", "finetune:0"), ("gate:", "gate:0")]
)
def test_wrong_step_is_one_sentence(text: str, says: str) -> None:
    """Catches a misspelt stage that redoes nothing in silence."""
    with pytest.raises(BadInput, match=says):
        parse([text])
    assert parse(["harness"]).report() == ["--redo harness: this run has no such step."]


def test_iteration_that_the_run_does_not_have_is_said() -> None:
    """Catches a `--redo finetune:7` that does nothing in silence, because another finetune was computed again."""
    asked = parse(["finetune:0", "finetune:7"])
    step = Step(demo_rows, "x", demo_rows.Config(seed=3, split="train", **demo_rows.SETS["builtin:tasks"]))
    assert not asked.takes(step)
    assert asked.takes(Step(finetune, "iter 0", finetune.Config(finetune=Finetune(), seed=0), Place("iteration", 0)))
    assert asked.report() == ["--redo finetune:7: this run has no such step."]


def planted(store: Store, step: dict) -> str:
    """Puts an output of another day in the place of a step's; the digest of what the step gives."""
    record = store.record(step["stage"], step["key"])
    assert record is not None
    (store.root / "records" / record.stage / f"{record.key}.json").unlink()
    tree = store.new_tree()
    for entry in record.files:
        (tree / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.path / entry["path"], tree / entry["path"])
    (tree / "answers.jsonl").write_text((tree / "answers.jsonl").read_text().replace('"text": "', '"text": "not so: '))
    assert store.publish(record.payload, tree, record.facts).digest != record.digest
    return record.digest


def test_replaced_answers_are_what_later_runs_go_on_from(
    spinloop, server, finished, tiny, tmp_path, monkeypatch
) -> None:
    """Catches a new output that only the run that made it uses, or that takes the place of the first; a shard of the
    same bytes that is replaced too; a plan that asks for another output than the run; an `explain` that cannot tell the
    two apart; and a worker that asks for another output than the run that sends it work."""
    place = tmp_path / "store"
    shutil.copytree(finished[0], place, symlinks=True)
    store = Store(place)
    shards = [step for step in finished[1] if step["stage"] == "generate" and step["place"]["iteration"] == 1]
    ours, others = shards[0], len(shards) - 1
    new = planted(store, ours)
    code, out, err = spinloop("run", tiny, "--store", place, "--json", "--redo", "generate:1", "--replace")
    assert code == 0, err
    notes = [note for note in json.loads(out)["notes"] if "computed again" in note]
    assert sum("the same bytes; the output stays, as there is nothing to replace" in note for note in notes) == others
    (taken,) = [note for note in notes if "replaced once" in note]
    assert taken.startswith("generate[iter 1, shard 1/") and "answers.jsonl" in taken and len(notes) == len(shards)
    # What came out now is what the first run gave, so all that was computed behind it is there.
    steps = json.loads(out_steps(out))
    assert {step["stage"] for step in steps if step["state"] == "ran"} == {"generate"}

    code, out, err = spinloop("run", tiny, "--store", place, "--json")
    assert code == 0 and json.loads(out)["ran"] == 0, err
    again = next(step for step in json.loads(out_steps(out)) if step["digest"] == new)
    assert again["key"] != ours["key"] and {step["digest"] for step in json.loads(out_steps(out))} == {
        step["digest"] for step in finished[1]
    }
    assert store.lookup("generate", ours["key"]).digest != new, "the first output is gone"
    code, out, err = spinloop("plan", tiny, "--store", place)
    assert code == 0 and f", 1 of {len(shards)} replaced" in out and " 0 would run." in out, out + err
    code, out, err = spinloop("store", "explain", again["key"], "--store", place)
    assert code == 0 and f"differs from {ours['key'][:12]} in generate: replaced 0 → 1 times" in out, out
    code, out, err = spinloop("store", "show", ours["key"], "--store", place)
    assert code == 0 and f"replaced once since (`--redo … --replace`): runs ask for {again['key'][:12]}" in err, err

    monkeypatch.setenv("SPINLOOP_STORE", str(place))
    for key, take in ((again["key"], 1), (ours["key"], 0)):
        record = store.record("generate", key)
        shard = record.payload["inputs"]["prompts"]
        tokens = next(step["digest"] for step in finished[1] if step["stage"] == "tokenize")
        reads = {"model": record.payload["inputs"]["model"], "prompts": {"digest": shard, "tree": tokens, "file": "x"}}
        work = {"label": "by a worker", "inputs": reads, "key": key, "take": take}
        config = pool_flows.generate_stage.Config.model_validate(record.payload["config"])
        state = pool_flows.generate(config, [work], return_state=True)
        assert state.message == "0 steps ran, 1 was cached.", state.message
    state = pool_flows.generate(config, [work | {"take": 1}], return_state=True)
    assert "another key than the run that asks" in state.message


@pytest.mark.parametrize(
    ("asked", "profile", "says"),
    [
        ([], {}, "--replace: say which step with --redo"),
        (["generate:2"], {"iterations": 2}, "--redo generate:2: tiny has the iterations 0 to 1"),
        (["harness"], {}, "--redo harness: tiny has no section harness"),
        (["sft"], {"sft": None}, "--redo sft: tiny has no section sft"),
        (["generates"], {}, "there is no such stage"),
    ],
)
def test_replacing_what_the_run_cannot_have_is_one_sentence(asked, profile, says) -> None:
    """Catches a run that computes for hours and then says that there was nothing to replace."""
    config = parsed(TINY | profile, "tiny")
    with pytest.raises(BadInput, match=says):
        parse(asked, True).demand(config)
    if asked and asked != ["generates"]:
        parse(asked).demand(config)  # to compare is as it was: said at the end


def test_what_came_of_a_replacement_is_said(tmp_path) -> None:
    """Catches a new output that is taken in silence, "the same bytes" that seem to be taken, and a deterministic stage
    whose replacement is not called what it is."""
    made = Record("gate", "0" * 64, {}, "0" * 64, [], {}, tmp_path)  # type: ignore[typeddict-item]
    asked = parse(["gate", "generate"], True)
    asked.met = set(asked.wanted)
    asked.done = {"gate[iter 0]": Redone(made, []), "generate[iter 0]": Redone(made, ["a", "b"], 3)}
    same, taken, why = asked.report()
    assert same == "gate[iter 0]: computed again, the same bytes; the output stays, as there is nothing to replace."
    assert "otherwise in a, b; every run goes on from the new output from now on (replaced 3 times)" in taken
    assert why.startswith("--replace gate: computes without a model")


def test_new_output_is_taken_and_the_first_stays(tmp_path: Path) -> None:
    """Catches a step that is replaced before it has run, a first output that is overwritten, evidence of a difference
    where the new output has a place of its own, and a second replacement by the same bytes."""
    store = Store(tmp_path / "store")
    config = demo_rows.Config(seed=3, split="train", train_rows=20, test_rows=5)
    keyed = KeyedStep(Step(demo_rows, "train", config), {})
    with Children(1) as children:
        with pytest.raises(StageFailed, match="no output to compare with"):
            replace(store, keyed, Runtime(), children, lambda event: None)
        other = store.new_tree()
        (other / "notes.txt").write_text("of another day")
        first = store.publish(keyed.payload, other, {}, keyed.key)
        made = replace(store, keyed, Runtime(), children, lambda event: None)
        assert made.take == 1 and made.differing == ["notes.txt", "rows.jsonl"]
        now = KeyedStep(keyed.step, {}, store.takes.read())
        assert look_up(store, now) == made.record and look_up(store, keyed) == first
        again = replace(store, now, Runtime(), children, lambda event: None)
        assert again.take == 0 and again.differing == [] and again.record == made.record
        assert store.takes.read() == {keyed.key: 1} and len([*store.records()]) == 2
        assert not [*store.root.glob("records/*/*.nondeterministic-*")]
        assert not [*(store.root / "tmp").iterdir()] and not [*(store.root / "scratch").iterdir()]
        compared = recompute(store, now, Runtime(), children, lambda event: None)
        assert compared.differing == [] and compared.record == made.record
