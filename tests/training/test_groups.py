"""The pairs of one prompt as one group, and pairs of identical answers: the same training in less work."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_data import SETTINGS, part_of, played, trees
from packing_data import forms_of, tiny_llama, tokens
from torch import Tensor
from training_data import ended_and_resumed, finetune_config, job_at, metrics_of, pairs_tree

from spin_core.config.finetune import Finetune
from spin_core.data.rows import Pair, answer_id, row_of
from spin_core.errors import BadInput
from spin_core.modeling.collate import Tokens, read_groups
from spin_core.modeling.examples import by_prompt, read_examples, reference_logps
from spin_core.modeling.packing import Batch
from spin_core.stages import finetune
from spin_core.store.keys import config_payload
from spin_core.training.loop import TrainingPlan
from spin_core.training.objectives import CANCELS, SpinPairs
from spin_core.training.strategy import Strategy
from tests.benchmarks import our_way
from tests.benchmarks.bench_work import Watch, Work

__all__ = ["played", "trees"]  # fixtures
bounded = settings(max_examples=100, derandomize=True)
LOSSES = ("sigmoid", "hinge", "unpaired", "alpha", "tpaw", "tspin")
FIRST, SECOND = [5, 9, 7, 31], [7, 8]
REAL, OTHER, SHORT = [11, 12, 13, 14, 4], [21, 22, 4], [8, 4]


def pair(prompt: list[int], *answers: list[int]) -> tuple[Tokens, ...]:
    return tuple(tokens(prompt, answer) for answer in answers)


PAIRS = [
    pair(FIRST, REAL, OTHER), pair(SECOND, OTHER, SHORT), pair(FIRST, REAL, SHORT), pair(FIRST, SHORT, OTHER),
    pair(FIRST, REAL, [33, 34, 35]), pair(SECOND, OTHER, OTHER), pair(FIRST, REAL, REAL), pair(FIRST, REAL, SHORT),
]  # fmt: skip
"""Two prompts; one of them with two real answers. Two pairs are of identical answers, two are the same pair."""
MEMBERS = [np.array(own) for own in ([0, 2, 4, 6, 7], [1, 5], [3])]
IDENTICAL = [5, 6]


def objective_of(name: str, members: list[np.ndarray] | None, **more: Any) -> SpinPairs:
    """Each pair has log-probs of its own under each model, also of answers that are the same."""
    part, pairs = part_of(name, **more), PAIRS
    if name == "tspin":
        pairs = [(*one, tokens(one[0].ids[: one[0].prompt].tolist(), [40 + i % 2])) for i, one in enumerate(PAIRS)]
    models = 0 if part.reference_free else {"tpaw": 3, "alpha": 2}.get(part.loss, 1)
    draws = torch.Generator().manual_seed(3)
    reference = -20 + 5 * torch.randn(len(pairs), models, len(pairs[0]), generator=draws, dtype=torch.float64)
    for i in IDENTICAL:
        reference[i, :, 1] = reference[i, :, 0]
    return SpinPairs(pairs, reference, part, members)


def stepped(learned: SpinPairs, batches: list[list[int]], packed: bool = True) -> tuple[list[dict], list[Tensor], int]:
    """Steps of the groups in float64: their metrics, the weights behind each, and how many sequences were computed."""
    policy = forms_of(tiny_llama())[0 if packed else 1]
    optimizer = torch.optim.RMSprop(policy.model.parameters(), lr=0.01)
    read: list[int] = []
    policy.register_forward_pre_hook(lambda _, args: read.append(args[0].sequences))
    strategy = Strategy(policy, policy, optimizer, 0.5, 60, sharded=False)
    metrics, weights = [], []
    for batch in batches:
        metrics.append(strategy.step(learned, np.array(batch), 0.01))
        weights.append(torch.cat([one.detach().flatten().clone() for one in policy.model.parameters()]))
    return metrics, weights, sum(read)


def separate(batches: list[list[int]]) -> list[list[int]]:
    """The pairs of batches of groups."""
    return [[int(i) for group in batch for i in MEMBERS[group]] for batch in batches]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("more", [{}, {"sft_weight": 0.7}, {"length_normalised": True}])
@pytest.mark.parametrize("name", LOSSES)
def test_steps_of_groups_are_those_of_their_pairs(name: str, more: dict, packed: bool) -> None:
    """Catches an answer read in another one's place, a pair with its neighbour's opponent log-probs, a mean over groups
    instead of pairs, an anchor once a group, and an answer that sees the one before it. The optimiser's state is
    carried over three steps; the gradients' norm is clipped."""
    batches = [[0], [1, 2], [2, 0, 1]]
    grouped = stepped(objective_of(name, MEMBERS, **more), batches, packed)
    alone = objective_of(name, None, **more)
    alone.shares, alone.identical = False, np.zeros(len(PAIRS), bool)
    expected = stepped(alone, separate(batches), packed)
    for own, theirs in zip(grouped[1], expected[1], strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-10)
    every = not objective_of(name, MEMBERS, **more).identical.any()
    for batch, own, theirs in zip(separate(batches), grouped[0], expected[0], strict=True):
        ties = sum(i in IDENTICAL for i in batch) / len(batch)  # two computations of one answer differ by rounding
        for key, value in theirs.items():
            if every or key in ("loss", "rewards/accuracies", "rewards/margins", "grad_norm"):
                near = ties + 1e-9 if key == "rewards/accuracies" else 1e-9
                assert own[key] == pytest.approx(value, abs=near), key
    assert grouped[2] < expected[2], "prompts and real answers are shared"


@pytest.mark.parametrize("members", [None, [MEMBERS[0], *map(np.array, ([1], [3], [5]))]], ids=["pairs", "prompts"])
@pytest.mark.parametrize("name", LOSSES)
def test_identical_pairs_cost_nothing_where_they_teach_nothing(name: str, members: list | None) -> None:
    """Catches an identical pair left out of a loss that it does teach by, of the mean, or of the optimiser's steps (the
    second step has nothing else: its gradients are 0, and the state moves on)."""
    batches = [[0, 5, 3], [6, 5], [1, 6]] if members is None else [[0, 1, 2], [3], [2, 0]]
    learned, computed = objective_of(name, members), objective_of(name, members)
    computed.identical = np.zeros(len(PAIRS), bool)
    assert learned.identical.any() == (name in CANCELS)
    own, expected = stepped(learned, batches), stepped(computed, batches)
    for one, other in zip(own[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    for one, other in zip(own[0], expected[0], strict=True):
        for key in ("loss", "rewards/accuracies", "rewards/margins"):
            assert one[key] == pytest.approx(other[key], abs=1e-9), key
        assert one.keys() == other.keys()
    if name in CANCELS and members is None:
        assert (own[2], expected[2]) == (7, 10), "of step 2 one pass; an identical pair has one sequence"


def test_figures_are_means_over_what_is_computed() -> None:
    """Catches log-probs that are too near to 0 as identical pairs are in the number they are divided by."""
    learned = objective_of("sigmoid", None)
    with_, without = (stepped(learned, [batch])[0][0] for batch in ([0, 5, 6], [0]))
    for key in ("rewards/real", "rewards/generated", "logps/real", "logps/generated"):
        assert with_[key] == pytest.approx(without[key], abs=1e-9)
    assert with_["rewards/margins"] == pytest.approx(without["rewards/margins"] / 3, abs=1e-9)
    assert with_["loss"] == pytest.approx((without["loss"] + 2 * np.log(2)) / 3, abs=1e-9)


@pytest.mark.parametrize("more", [{"sft_weight": 0.5}, {"collation": "reference"}])
def test_identical_pairs_are_computed_where_they_teach_or_are_to_be_as_published(more: dict) -> None:
    """Catches an anchor that loses the real answers of identical pairs, and a reproduction in another arithmetic."""
    assert not objective_of("sigmoid", None, **more).identical.any()
    assert len(objective_of("sigmoid", None, **more).group(5)) == (2 if "collation" in more else 1)


def plan_of(counts: list[int], batch: int, seed: int = 3) -> TrainingPlan:
    return TrainingPlan(Finetune(global_batch=batch), seed, sum(counts), np.array(counts))


@bounded
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=40), batch=st.integers(6, 20), seed=st.integers(0, 5))
def test_every_epoch_has_each_group_once_and_as_many_steps_as_of_pairs(counts, batch, seed) -> None:
    """Catches groups lost, doubled or torn, a step without any (its mean would be 0/0), an epoch of another length than
    the schedule's, and steps that drift away from global_batch."""
    plan = plan_of(counts, batch, seed)
    for epoch in range(2):
        steps = [plan.examples_of(epoch * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)]
        assert sorted(np.concatenate(steps).tolist()) == list(range(len(counts)))
        assert all(len(step) for step in steps)
        sizes = [plan.size_of(step) for step in steps]
        assert sum(sizes) == sum(counts) and plan.steps_per_epoch == -(-sum(counts) // batch)
        # Each boundary is within half a group of its place, but for those that make room for the last steps.
        if plan.steps_per_epoch * 2 <= len(counts):
            assert all(size <= batch + 2 * max(counts) for size in sizes)


def test_steps_begin_nearest_to_their_place_and_each_has_a_group() -> None:
    """Catches a step that is always too large (or too small), and a last one whose only group the one before took."""
    assert plan_of([3, 3, 2, 4, 1], 4)._begins(np.array([3, 3, 2, 4, 1])).tolist() == [0, 1, 3, 4, 5]
    assert plan_of([2, 3, 4], 4)._begins(np.array([2, 3, 4])).tolist() == [0, 1, 2, 3]


@bounded
@given(examples=st.integers(1, 60), batch=st.integers(1, 9))
def test_groups_of_one_pair_are_drawn_as_pairs(examples: int, batch: int) -> None:
    """Catches another order of the same pairs under `order: prompts` without any prompt that comes again."""
    grouped = plan_of([1] * examples, batch)
    plain = TrainingPlan(grouped.part, grouped.seed, examples)
    for step in range(2 * plain.steps_per_epoch):
        assert grouped.examples_of(step).tolist() == plain.examples_of(step).tolist()


def one_pair(id: str, prompt: str, real: str, generated: str) -> Pair:
    return Pair(id, [{"role": "user", "content": prompt}], real, generated, "stop")


def test_groups_are_by_row_and_real_answer(tmp_path: Path) -> None:
    """Catches equal prompts of different real answers in one group, whatever their rows are called, an edited answer
    that is taken for the old one, and two rows of one text as one (a set of copies would be one giant group)."""
    old = [
        one_pair("a", "Why?", "So.", "No."),
        one_pair("b", "Why?", "Because.", "No."),
        one_pair("c", "How?", "A", ""),
    ]
    new = [
        one_pair("a", "Why?", "So.", "Perhaps."), one_pair("a#2", "Why?", "So.", "Never."),
        one_pair("b", "Why?", "Just so.", "No."), one_pair("d", "How?", "A", "B"), one_pair("c#12", "How?", "A", "C"),
    ]  # fmt: skip
    folders = [pairs_tree(tmp_path / name, pairs, pairs[:1]) for name, pairs in (("old", old), ("new", new))]
    groups = read_groups(folders, "train", 128)
    assert [own.tolist() for own in by_prompt(groups)] == [[0, 3, 4], [1], [2, 7], [5], [6]]
    assert [row_of(answer_id("x", n)) for n in range(12)] == ["x"] * 12
    assert len({answer_id("x", n) for n in range(12)}) == 12 and row_of("x#") == "x#"


@pytest.mark.parametrize("name", ["tpaw", "tspin against θ_t"])
def test_finetune_in_order_of_prompts(name: str, played: Callable, tmp_path: Path, policy_calls: list[Batch]) -> None:
    """Catches a stage that draws single pairs, counts groups as pairs, or goes on from a checkpoint to other bytes."""
    inputs, digests = played(name)
    policy_calls.clear()
    config = finetune_config(
        loss=name.partition(" ")[0], schedule_epochs=1.0, order="prompts", length_normalised=True, **SETTINGS[name]
    )
    whole = job_at(tmp_path / "whole", digests)
    summary = finetune.run(inputs, config, whole)
    lines = metrics_of(whole.out)
    # Sets 1 (without row 3) and 2: nine groups of two pairs, one of one. Five steps of about four pairs.
    assert (summary["pairs"], summary["groups"], summary["identical"]) == (19, 10, 0)
    assert sum(line["pairs"] for line in lines) == 19 and len(lines) == 5
    width = 3 if name == "tpaw" else 4
    assert sum(batch.sequences for batch in policy_calls) == 9 * width + width - 1
    ended = ended_and_resumed(tmp_path / "ended", inputs, digests, config)
    for out in ("model.safetensors", "metrics.jsonl"):
        assert (ended / out).read_bytes() == (whole.out / out).read_bytes()


def test_what_order_cannot_be_is_refused(played: Callable, tmp_path: Path) -> None:
    """Catches a group that no step can have, and a setting that is silently not applied."""
    for changes, words in (({"loss": "dft"}, "anyway"), ({"collation": "reference"}, "collation: exact")):
        with pytest.raises(ValueError, match=f"order: prompts.*{words}"):
            Finetune(order="prompts", **changes)
    inputs, digests = played("tpaw")
    with pytest.raises(BadInput, match=r"2 pairs.*global_batch 1 .*raise global_batch to 2"):
        config = finetune_config(loss="tpaw", order="prompts", global_batch=1, **SETTINGS["tpaw"])
        finetune.run(inputs, config, job_at(tmp_path, digests))


def test_keys_without_order_are_as_before() -> None:
    """Catches a default that enters keys: every finetuned model would be trained again."""
    assert "order" not in config_payload(Finetune()) and config_payload(Finetune(order="prompts"))["order"] == "prompts"
    assert config_payload(Finetune(order="pairs")) == config_payload(Finetune())


def test_dft_has_all_answers_to_a_row_with_the_score_of_each(tmp_path: Path) -> None:
    """Catches an answer that counts twice, an example for each answer, one in another row's group, a score in another
    one's place, and answers to rows without a pair that go without a word."""
    old = {"a": "uv", "a#2": "w", "b#2": "x", "z": "y"}
    new = {"a": "k", "a#2": "l", "a#3": "m", "b": "n", "c#2": "o"}
    folders = []
    for name, own in (("old", old), ("new", new)):
        pairs = [one_pair(id, f"Why {row_of(id)}?", "So.", text) for id, text in own.items()]
        folders.append(pairs_tree(tmp_path / name, pairs, pairs[:1]))
    events: list[dict] = []
    part = Finetune(loss="dft")
    groups = read_examples(part, folders, None, [False, False], job_at(tmp_path, events=events))
    expected = [["a", "a#2", "a#3", "old a", "old a#2"], ["b", "old b#2"], ["c#2"]]
    named = {f"{of}{id}": g[1] for of, tree in zip(("old ", ""), folders, strict=True) for id, g in _named(tree)}
    for group, wanted in zip(groups, expected, strict=True):
        assert [one.ids.tolist() for one in group[1:]] == [named[id].ids.tolist() for id in wanted]
    assert [[n for n in row if n] for row in groups.lengths().tolist()] == [list(map(len, group)) for group in groups]
    assert "1 answers of earlier iterations" in events[-1]["note"]
    scores = [np.array([[-i, -i - 0.5] for i in range(base, base + n)], float) for base, n in ((100, 4), (200, 5))]
    reference = reference_logps(part, groups, [scores])[:, 0]
    assert reference[0].tolist() == [-200, -200.5, -201.5, -202.5, -100.5, -101.5]
    assert reference[1].tolist() == [-203, -203.5, -102.5, 0, 0, 0]
    assert reference[2].tolist() == [-204, -204.5, 0, 0, 0, 0]


def _named(folder: Path) -> list[tuple[str, tuple[Tokens, ...]]]:
    groups = read_groups([folder], "train", 128)
    return list(zip(groups.ids, groups, strict=True))


def test_benchmark_of_groups_trains_the_pairs_in_groups(theta: Path, policy_calls: list[Batch]) -> None:
    """Catches a row of `make bench-train` that compares two ways of the same work, or two trainings that differ."""
    rows = [([5, 6, 7], [8, 4], [9, 4 + k]) for k in range(2)] + [([7, 5], [11, 4], [12, 13 + k]) for k in range(2)]
    alone = Work(str(theta), rows, 3, 4, 1, 2, 1e-3, "float32", "cpu", 1, scored=False)
    grouped = replace(alone, together=[[0, 1], [2, 3]])
    losses, read = [], []
    for work in (alone, grouped):
        policy_calls.clear()
        losses.append(our_way.run(work, Watch()))
        read.append(sum(batch.sequences for batch in policy_calls))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and losses[0][1] < losses[0][0]
    assert read == [2 * 8, 2 * 6]
    assert (alone.useful_tokens, grouped.grouped_tokens) == (26, 17)
