"""`--redo`: a step is computed again on purpose, and what stands in the store stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from spin_core.config.finetune import Finetune
from spin_core.config.runtime import Runtime
from spin_core.config.stage_table import ORDER
from spin_core.errors import BadInput, StageFailed
from spin_core.job import Place
from spin_core.runtime.child import Children
from spin_core.runtime.redo import recompute
from spin_core.runtime.step import KeyedStep, Step
from spin_core.stages import demo_rows, finetune
from spin_core.store.store import Store
from tasks.runner.redo import parse


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
