"""Names and the step axis of a run's curves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spin_core.config.profile import parse
from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput
from spin_core.job import Place
from spin_core.trackers.boards import BOARDS
from spin_core.trackers.curves import Curves
from spin_core.trackers.redact import settings


def trained(root: Path, losses: list[float]) -> Path:
    """A model's tree with metrics.jsonl."""
    root.mkdir()
    lines = [{"step": i, "loss": loss, "rewards/margins": -loss, "note": "x"} for i, loss in enumerate(losses, 1)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_iterations_follow_each_other_and_models_stand_where_they_were_made(tmp_path):
    """Catches iterations that begin at 0 again and lie over each other, θ_0's SFT left out of the axis, a control that
    begins behind the iterations (it begins at θ_0), and held-out figures beside the model that they are of."""
    curves, nothing = Curves(), Path()
    start, control = Place("start", model=0), Place("control", 1)
    first, second = Place("iteration", 0, model=1), Place("iteration", 1, model=2)
    sft = list(curves.of("sft", start, {}, trained(tmp_path / "sft", [3.0, 2.0])))
    assert sft == [
        (1, {"sft/loss": 3.0, "sft/rewards/margins": -3.0}),
        (2, {"sft/loss": 2.0, "sft/rewards/margins": -2}),
    ]
    assert list(curves.of("evaluate", start, {"summary": {"nll/real": 4.0}}, nothing)) == [
        (2, {"evaluate/nll/real": 4})
    ]
    assert [at for at, _ in curves.of("finetune", first, {}, trained(tmp_path / "0", [1.0, 0.5, 0.2]))] == [3, 4, 5]
    live = curves.line("finetune", second, {"step": 1, "loss": 0.1})
    assert live == (6, {"finetune/loss": 0.1, "finetune/iteration": 1.0})
    assert [at for at, _ in curves.of("finetune", second, {}, trained(tmp_path / "1", [0.1]))] == [6]
    instead = list(curves.of("sft", control, {}, trained(tmp_path / "c", [2.0, 1.0])))
    assert [(at, next(iter(values))) for at, values in instead] == [
        (3, "control-2/sft/loss"),
        (4, "control-2/sft/loss"),
    ]
    of_control = curves.of("evaluate", control, {"summary": {"repetition/t0.3": 0.5, "engine": "x"}}, nothing)
    assert list(of_control) == [(4, {"control-2/evaluate/repetition/t0.3": 0.5})]
    of_second = curves.of(
        "harness", second, {"summary": {"arc,none": 0.5, "average": None, "odd": float("nan")}}, nothing
    )
    assert list(of_second) == [(6, {"harness/arc_none": 0.5})]


def test_speed_is_that_of_all_shards_as_their_records_have_it():
    """Catches a speed by this process's clock, which a cached rerun does not have again, and that of the last shard."""
    curves, place = Curves(), Place("iteration", 0)
    for tokens, seconds in ((100, 2.0), (300, 6.0)):
        facts = {"summary": {"tokens": tokens}, "seconds": seconds}
        assert not list(curves.of("generate", place, facts, Path()))
    (one,) = curves.of("gather", place, {}, Path())
    assert one == (0, {"generate/tokens_per_second": 50.0, "generate/tokens": 400.0})


def test_imported_pairs_have_no_speed():
    """Catches a division by nothing where an iteration's pairs were imported."""
    assert not list(Curves().of("gather", Place("iteration", 0), {}, Path()))


def test_profile_of_a_board_has_no_path_and_no_login(tmp_path):
    """Catches a user's home or a password on a board that others read, and a hub id that is taken for a path."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").touch()
    profile = {
        "name": "x",
        "model": {"path": "/home/someone/models/base"},
        "dataset": {"path": "data/rows.jsonl", "sets": [{"path": "org/name"}, {"path": "https://me:secret@host/x"}]},
        "finetune": {"lr": 5e-7, "lora": None},
        "generate": {"stop": ["a", "b"]},
        "runtime": {"vllm_python": "/opt/vllm/bin/python", "threads": 2, "trackers": ["mlflow"]},
    }
    assert settings(profile, tmp_path) == {
        "model.path": "…/base",
        "dataset.path": "…/rows.jsonl",
        "dataset.sets.0.path": "org/name",
        "dataset.sets.1.path": "https://host/x",
        "finetune.lr": 5e-7,
        "generate.stop": "a, b",
        "runtime.threads": 2,
    }


def test_unknown_tracker_is_one_sentence_that_lists_the_known():
    """Catches a name that fails in the middle of a run, and one that the profile takes and no board has."""
    least = {"model": {"path": "m"}, "dataset": {"path": "d"}}
    with pytest.raises(BadInput) as error:
        parse({**least, "runtime": {"trackers": ["tensorbord"]}}, "p")
    assert all(name in str(error.value) for name in ("runtime.trackers.0", "tensorbord", *BOARDS))
    assert Runtime(trackers=list(BOARDS)).trackers == list(BOARDS)
