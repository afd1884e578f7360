"""Packed equals padded equals alone, whatever the lengths; and which groups a forward pass gets."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from packing_data import OTHER, REAL, SHARED, SPECIAL, WORDS, alone, apart, forms_of, gradients, tiny_llama, tokens
from packing_draws import group_lists
from training_data import groups_of, made_up_pairs
from transformers import PreTrainedModel

from spin_core.errors import BadInput
from spin_core.modeling.packing import Group, pack, pad_groups, tokens_of

bounded = settings(max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
few = settings(bounded, max_examples=25)


@cache
def models(dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model by which packed and padded policies run, and one of the same weights to hold them to: eager, but in
    float64, where transformers' eager softmax is float32."""
    return tiny_llama(dtype, "sdpa"), tiny_llama(dtype, "sdpa" if dtype == torch.float64 else "eager")


def check(groups: Sequence[Group], dtype: torch.dtype, absolute: float, relative: float) -> None:
    model, plain = models(dtype)
    packed, pads = forms_of(model)
    expected = alone(plain, groups)
    wanted = gradients(plain, expected)
    assert "layout" in packed.batch(groups).inputs
    assert "layout" not in pads.batch(groups).inputs
    for policy in (packed, pads):
        logps = policy(policy.batch(groups))
        assert logps.dtype == dtype
        torch.testing.assert_close(logps, expected, rtol=0, atol=absolute)
        assert apart(gradients(model, logps), wanted) <= relative


@bounded
@given(groups=group_lists())
def test_packed_any_lengths_equals_each_sequence_alone_float64(groups) -> None:
    """Catches any wrong mask, position, label or gradient: in float64 nothing can hide behind rounding."""
    check(groups, torch.float64, 1e-10, 1e-9)


@few
@given(groups=group_lists())
def test_packed_any_lengths_equals_each_sequence_alone_float32(groups) -> None:
    """Catches sums in less than float32, and log-probs that lose digits in one form only."""
    check(groups, torch.float32, 2e-4, 1e-5)


@pytest.mark.parametrize("name", SPECIAL)
def test_packed_special_lengths_equal_each_sequence_alone(name) -> None:
    """Catches an off-by-one where a part is missing: the cases that a random draw may leave out."""
    check(SPECIAL[name], torch.float64, 1e-10, 1e-9)


@few
@given(groups=group_lists())
def test_policy_any_group_cost_is_its_tokens(groups) -> None:
    """Catches budgets that are counted in other tokens than those of the forward pass (a prompt counted twice)."""
    packed, pads = forms_of(models(torch.float64)[0])
    assert (
        packed.batch(groups).inputs["input_ids"].numel() == sum(map(packed.cost, groups)) == sum(map(tokens_of, groups))
    )
    for group in groups:
        assert pads.batch([group]).inputs["input_ids"].numel() == pads.cost(group)


@few
@given(groups=group_lists())
def test_batches_any_form_have_the_same_labels(groups) -> None:
    """Catches labels lost, doubled, or given to another sequence in one of the forms."""
    one, other = pack(groups), pad_groups(groups, 3)
    assert one.targets.tolist() == other.targets.tolist()
    assert one.owners.tolist() == other.owners.tolist()
    assert one.sequences == other.sequences == sum(map(len, groups))
    assert len(one.targets) == sum(sequence.targets for group in groups for sequence in group)
    ids = (batch.inputs["input_ids"].flatten()[batch.predictors] for batch in (one, other))
    assert torch.equal(*ids)


@pytest.mark.parametrize("packing", [0, 1])
def test_policy_other_answers_and_groups_change_nothing(packing) -> None:
    """Catches an answer that sees its neighbour: to the last bit, where the lengths stay as they are."""
    policy = forms_of(models(torch.float32)[0])[1 - packing]
    groups = [[tokens(SHARED, REAL), tokens(SHARED, OTHER)], [tokens([6, 6], [1, 2]), tokens([6, 6], [3, 4, 5])]]
    changed = [[tokens(SHARED, REAL), tokens(SHARED, [50, 51])], [tokens([7, 8], [9, 9]), tokens([7, 8], [5, 4, 3])]]
    with torch.no_grad():
        before, after = (policy(policy.batch(some)) for some in (groups, changed))
    assert before[0] == after[0]
    assert all(before[1:] != after[1:])


@pytest.mark.parametrize(
    "group",
    [
        [tokens(SHARED, REAL, [0]), tokens(SHARED, OTHER, [0])],
        [tokens(SHARED, REAL), tokens(SHARED[:-1], OTHER)],
        [tokens(SHARED, REAL), tokens([5, 9, 7, 30], OTHER)],
        [tokens(SHARED, REAL, [2]), tokens(SHARED, OTHER)],
        [tokens([], REAL), tokens([], [])],
    ],
    ids=["first token hidden", "prompts of two lengths", "two prompts", "prompts hidden unlike", "no token"],
)
def test_policy_group_that_cannot_be_packed_is_padded(group) -> None:
    """Catches a group packed under the first sequence's prompt though the second has another, and rows that see
    nothing and become NaN."""
    good = [tokens(SHARED, OTHER), tokens(SHARED, REAL)]
    packed, pads = forms_of(models(torch.float64)[0])
    batch = packed.batch([good, group])
    assert "layout" not in batch.inputs
    logps = packed(batch)
    assert torch.equal(logps, pads(pads.batch([good, group])))
    assert logps.isfinite().all()
    expected = alone(models(torch.float64)[1], [good])
    torch.testing.assert_close(logps[:2], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("collation", ["exact", "reference"])
def test_packed_pairs_cut_at_the_limit_equal_alone(collation) -> None:
    """Catches cut sequences that are not packed, or packed behind another prompt; a prompt over the limit is refused
    in `exact` before it comes here (the reference cuts it)."""
    limit = 34 if collation == "exact" else 72
    pairs = groups_of(made_up_pairs(6), limit, reference=collation == "reference")
    lengths = [len(one) for pair in pairs for one in pair]
    assert max(lengths) <= limit
    assert collation == "reference" or lengths.count(limit) > 2
    folded = [[replace(one, ids=one.ids % WORDS) for one in pair] for pair in pairs]
    check(folded, torch.float64, 1e-10, 1e-9)
    if collation == "exact":
        with pytest.raises(BadInput, match="no room for an answer in max_length 20"):
            groups_of(made_up_pairs(6), 20)


def test_pack_one_prompt_is_there_once_and_positions_restart() -> None:
    """Catches packing that saves nothing: the prompt again for each answer."""
    batch = pack([[tokens(SHARED, REAL), tokens(SHARED, OTHER)], [tokens([6], [1])]])
    assert batch.inputs["input_ids"].tolist() == [[*SHARED, *REAL, *OTHER, 6, 1]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 5, 0, 1]]
    assert batch.targets.tolist() == [*REAL, *OTHER, 1]
    assert batch.predictors.tolist() == [3, 4, 5, 6, 7, 3, 9, 11]
    assert batch.owners.tolist() == [0] * 5 + [1] * 2 + [2]
    assert np.array_equal(batch.inputs["layout"].branch, [0] * 4 + [1] * 5 + [2] * 2 + [0, 1])
