"""How a finetune can end, through the store and a real child process: published, or one sentence and nothing left."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_data import (
    DIGESTS,
    copy_model,
    finetune_config,
    job_at,
    made_up_pairs,
    metrics_of,
    pairs_tree,
    score_config,
    scored,
)

from spin_core.config.runtime import Runtime
from spin_core.errors import BadInput, SpinloopError, StageFailed
from spin_core.runtime.child import Children
from spin_core.runtime.step import KeyedStep, Step, compute
from spin_core.sources import resolve
from spin_core.sources.resolve import Ref
from spin_core.stages import finetune, score
from spin_core.store.store import Record, Store
from spin_core.training.strategy import apply_gradients

RUNTIME = Runtime(device="cpu", threads=1, checkpoint_every=1)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children(1) as result:
        yield result


def ref(path: Path, digest: str) -> Ref:
    """A tree outside the store under a digest of the test's choice."""
    return Ref(digest=digest * 64, path=str(path), stamp=resolve.stamp(path))


class World:
    """A store, a model and pairs; `finetune(…)` and `score(…)` as a run computes them."""

    def __init__(self, root: Path, children: Children, theta: Path, pairs: Path):
        self.root, self.children = root, children
        self.model, self.pairs = ref(theta, "a"), ref(pairs, "b")
        self.store = Store(root / "store")

    def compute(self, step: Step, inputs: dict) -> Record:
        return compute(self.store, KeyedStep(step, inputs), RUNTIME, self.children, lambda event: None)[0]

    def score(self, **changes) -> Path:
        inputs = {"model": self.model, "pairs": self.pairs}
        return self.compute(Step(score, "", score_config(finetune_config(**changes))), inputs).path

    def finetune(self, logps: Path, config: finetune.Config | None = None, **digests) -> Record:
        inputs = {"model": self.model, "pairs": [self.pairs], "logps": [ref(logps, "c")]} | digests
        return self.compute(Step(finetune, "", config or finetune_config()), inputs)

    def fails(self, error: type[SpinloopError], logps: Path, *args, **digests) -> str:
        """The sentence of a finetune that fails; afterwards the store is as it was but for checkpoints of its own."""
        before = {path: path.read_bytes() for path in self.published()}
        with pytest.raises(error) as caught:
            self.finetune(logps, *args, **digests)
        assert {path: path.read_bytes() for path in self.published()} == before
        assert not list((self.store.root / "tmp").iterdir())
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def published(self) -> list[Path]:
        return [path for part in ("records", "trees") for path in (self.store.root / part).rglob("*") if path.is_file()]


@pytest.fixture
def world(tmp_path, children, theta) -> Callable[..., World]:
    """A world of so many pairs (train, test)."""

    def make(train: int = 4, test: int = 0, name: str = "world") -> World:
        tree = pairs_tree(tmp_path / name / "pairs", made_up_pairs(train), made_up_pairs(test, 100))
        return World(tmp_path / name, children, theta, tree)

    return make


@pytest.fixture(scope="module")
def scored_once(tmp_path_factory, children, theta) -> Path:
    """The right scores of the pairs that `world()` has."""
    root = tmp_path_factory.mktemp("scored")
    return World(root, children, theta, pairs_tree(root / "pairs", made_up_pairs(4), [])).score()


@pytest.fixture
def damaged(tmp_path, scored_once) -> Callable[..., Path]:
    """A copy of the right scores with one thing wrong with it."""

    def make(name: str, change: Callable[[Path], object]) -> Path:
        copy = tmp_path / "damaged" / name
        shutil.copytree(scored_once, copy)
        for path in (copy, *copy.iterdir()):
            path.chmod(0o755)
        change(copy)
        return copy

    return make


def with_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], object]:
    return lambda tree: pq.write_table(change(pq.read_table(tree / "logps.parquet")), tree / "logps.parquet")


def with_first(column: str, value: float | None) -> Callable[[Path], object]:
    def change(table: pa.Table) -> pa.Table:
        values = [value, *table[column].to_pylist()[1:]]
        return table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.float64()))

    return with_table(change)


def cut(tree: Path) -> None:
    path = tree / "logps.parquet"
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "table missing": (lambda tree: (tree / "logps.parquet").unlink(), "logps.parquet", "not readable"),
    "table cut": (cut, "logps.parquet", "not readable"),
    "column missing": (with_table(lambda t: t.drop_columns(["generated"])), "logps.parquet", "'generated'"),
    "ids turned around": (with_table(lambda t: t.take(pa.array([1, 0, 2, 3]))), "logps.parquet", "in their order"),
    "a row missing": (with_table(lambda t: t.slice(1)), "logps.parquet", "its 3 train ids are not the 4"),
    "all of another split": (
        with_table(lambda t: t.set_column(1, "split", pc.replace_substring(t["split"], "train", "test"))),
        "logps.parquet",
        "its 0 train ids",
    ),
    "NaN": (with_first("real", float("nan")), "logps.parquet", "pair 0000000000000000 are nan"),
    "infinite": (with_first("generated", float("-inf")), "logps.parquet", "-inf"),
    "null": (with_first("generated", None), "logps.parquet", "None"),
    "settings missing": (lambda tree: (tree / "scores.json").unlink(), "scores.json", "not readable"),
    "settings cut": (lambda tree: (tree / "scores.json").write_text('{"model": '), "scores.json", "not readable"),
    "settings of another kind": (lambda tree: (tree / "scores.json").write_text("[]"), "scores.json", "JSON object"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_scores_are_refused_with_file_and_remedy(world, damaged, name) -> None:
    """Catches scores that are joined by position, NaN that shows up as a diverging run ("lower lr") hours later, and a
    bug report (KeyError, TypeError) in place of what to do."""
    change, file, what = DAMAGES[name]
    message = world().fails(BadInput, damaged("one", change))
    assert f"damaged/one/{file}: " in message
    assert what in message
    assert "run score on these pairs again" in message


# Another prompt limit or template makes other tokens, and so other pairs: they are in their content.
STALE = {
    "another model": ({}, {"model": "d"}, "model"),
    "other pairs": ({}, {"pairs": "d"}, "pairs"),
    "another max_length": ({"max_length": 100}, {}, "score"),
    "another precision": ({"precision": "bfloat16"}, {}, "score"),
    "another collation": ({"collation": "reference"}, {}, "score"),
}


@pytest.mark.parametrize("name", STALE)
def test_stale_scores_are_refused_with_file_and_remedy(world, scored_once, name) -> None:
    """Catches log-probs of another model, of other pairs or of other settings that are trained on without a word."""
    changes, digests, field = STALE[name]
    here = world()
    given: dict = {}
    if "model" in digests:
        given["model"] = dataclasses.replace(here.model, digest="d" * 64)
    if "pairs" in digests:
        given["pairs"] = [dataclasses.replace(here.pairs, digest="d" * 64)]
    message = here.fails(BadInput, scored_once, finetune_config(**changes), **given)
    assert "scores.json: " in message
    assert f"`{field}` is" in message
    assert "run score again" in message


def test_one_pair_trains_one_step_an_epoch(world) -> None:
    """Catches a plan that drops the last short batch (no step at all), a warm-up that takes every step, and a
    division by the requested global batch."""
    here = world(train=1)
    config = finetune_config(schedule_epochs=3.0, warmup_ratio=0.1, global_batch=64)
    lines = metrics_of(here.finetune(here.score(), config).path)
    assert [(line["pairs"], line["epoch"]) for line in lines] == [(1, 1.0), (1, 2.0), (1, 3.0)]
    assert [line["lr"] for line in lines] == pytest.approx([0.0, 1e-3, 5e-4])
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], abs=1e-6)
    assert lines[2]["rewards/margins"] > 0


def test_one_pair_whose_only_step_is_warm_up_is_refused(world) -> None:
    """Catches θ_{t+1} = θ_t published as trained."""
    here = world(train=1)
    config = finetune_config(schedule_epochs=1.0, warmup_ratio=0.1)
    message = here.fails(BadInput, here.score(), config)
    assert "its 1 optimiser step(s) all have the warm-up's learning rate 0" in message
    assert "set warmup_ratio to 0" in message


def test_no_pairs_are_refused(world) -> None:
    """Catches an empty train split that publishes θ_t, or a division by zero; with no held-out pairs either, an empty
    score."""
    here = world(train=0, test=2)
    assert "no pairs to train on; look at the dataset's train split" in here.fails(BadInput, here.score())
    with pytest.raises(BadInput, match="no pairs to score; look at the dataset"):
        world(train=0, name="empty").score()


def test_nan_loss_names_the_step_and_leaves_nothing_behind(world, scored_once) -> None:
    """Catches NaN weights that are published, and checkpoints of a broken run that are gone on from by another: the
    same command fails alike, from its own checkpoint, and the corrected one gives what it gives in a fresh store."""
    here = world()
    for _ in range(2):
        message = here.fails(StageFailed, scored_once, finetune_config(lr=1e30))
        # Which of the two is the first depends on the processor: 1e30 squared may be no number, or its gradient.
        assert re.match("finetune: step 2 of 2: (loss|the gradient norm) is .*nan; lower lr", message), message
    assert [path.name for path in here.store.root.rglob("checkpoint-*")] == ["checkpoint-00000001"]
    fixed = here.finetune(scored_once)
    assert fixed.facts["summary"]["resumed_at"] == 0
    assert fixed.digest == world(name="fresh").finetune(scored_once).digest
    assert json.loads(next((here.store.root / "records" / "finetune").iterdir()).read_text())["key"] == fixed.key


def test_loss_that_is_no_number_is_reported_as_such(tmp_path, theta) -> None:
    """Catches a loss that nobody looks at: broken weights, of which the gradient's norm alone would show."""
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(3), [])
    logps = scored(tmp_path / "score", theta, tree, finetune_config())
    broken = copy_model(tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"].fill_(3e38)  # finite, so that it loads; its logits are not
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    job = job_at(tmp_path / "job", DIGESTS)
    with pytest.raises(StageFailed, match="finetune: step 1 of 2: loss is nan; lower lr"):
        finetune.run({"model": broken, "pairs": [tree], "logps": [logps]}, finetune_config(), job)


@pytest.mark.parametrize("norm", [float("nan"), float("inf")])
def test_gradient_that_is_no_number_moves_no_weight(norm) -> None:
    """Catches an optimiser that steps first and looks then."""
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    with pytest.raises(StageFailed, match=f"the gradient norm is {norm}"):
        apply_gradients(torch.optim.SGD([weight]), 1.0, norm)
    assert weight.tolist() == [1.0, 1.0]


def test_refused_then_right_scores_give_the_same_as_right_ones_alone(world, damaged, scored_once) -> None:
    """Catches a refusal that leaves a lock, scratch or half a tree which the next run trips over or takes up."""
    here = world()
    here.fails(BadInput, damaged("nan", with_first("real", float("nan"))))
    again = here.finetune(scored_once)
    assert again.facts["summary"]["resumed_at"] == 0
    assert again.digest == world(name="fresh").finetune(scored_once).digest
