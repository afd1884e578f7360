"""Which groups a forward pass gets, and which process computes them."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_data import forms_of, tiny_llama, tokens

from spin_core.modeling.logprobs import Policy, micro_batches
from spin_core.modeling.packing import Group

bounded = settings(max_examples=100, derandomize=True)
costs_of = st.lists(st.integers(1, 60), min_size=1, max_size=30).map(lambda costs: sorted(costs, reverse=True))


@cache
def policy_of(packed: bool) -> Policy:
    return forms_of(tiny_llama())[0 if packed else 1]


class Pairs:
    """Pairs of given answer lengths behind a prompt of three tokens: packed, real + generated + 3."""

    name = "pairs"

    def __init__(self, lengths: list[tuple[int, int]]):
        self.lengths = lengths

    def group(self, index: int) -> Group:
        return [tokens([1, 2, 3], [4] * length) for length in self.lengths[index]]

    def size(self, index: int) -> int:
        return 1


def shares_of(policy: Policy, objective: Pairs, batch: np.ndarray, budget: int, processes: int) -> list:
    """The passes of every process over a global batch."""
    return policy.passes({int(i): objective.group(int(i)) for i in batch}, budget, processes, in_step=True)


pairs = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=25)


@bounded
@given(costs=costs_of, budget=st.integers(1, 120), packed=st.booleans())
def test_micro_batches_any_costs_all_once_and_within_the_budget(costs, budget, packed) -> None:
    """Catches groups lost or doubled, an empty pass, one over the budget that is not a single group, and a pass that
    ends though the next group would have fitted."""
    cut = micro_batches(costs, budget, packed)
    assert [n for part in cut for n in part] == list(range(len(costs)))
    assert all(cut)

    def tokens_in(part: list[int]) -> int:
        return sum(costs[n] for n in part) if packed else len(part) * max(costs[n] for n in part)

    assert all(tokens_in(part) <= budget or len(part) == 1 for part in cut)
    assert all(tokens_in([*part, after[0]]) > budget for part, after in pairwise(cut))


@bounded
@given(
    lengths=pairs, budget=st.integers(1, 200), processes=st.integers(1, 5), packed=st.booleans(), seed=st.integers(0, 9)
)
def test_shares_any_batch_fair_complete_and_in_step(lengths, budget, processes, packed, seed) -> None:
    """Catches pairs lost or doubled over processes, processes that would wait for each other for ever, one that has
    much more to do than another, passes over the budget, and a split that depends on the order of the batch (each
    process makes its own)."""
    policy, objective = policy_of(packed), Pairs(lengths)
    batch = np.random.default_rng(seed).permutation(len(lengths))
    shares = shares_of(policy, objective, batch, budget, processes)
    assert len(shares) == processes
    assert len({len(share) for share in shares}) == 1
    owned = [[i for indices, counts in share if counts for i in indices] for share in shares]
    assert sorted(i for own in owned for i in own) == list(range(len(lengths)))
    cost = [policy.cost(objective.group(i)) for i in range(len(lengths))]
    loads = [sum(cost[i] for i in own) for own in owned]
    # Nobody has more than the least busy one but for one pair, the shortest of its own.
    assert all(load - min(cost[i] for i in own) <= min(loads) for own, load in zip(owned, loads, strict=True) if own)
    for share in shares:
        for indices, _ in share:
            groups = [objective.group(i) for i in indices]
            assert len(groups) == 1 or policy.batch(groups).inputs["input_ids"].numel() <= budget
    assert shares_of(policy, objective, np.sort(batch)[::-1], budget, processes) == shares


@pytest.mark.parametrize("packed", [True, False])
def test_shares_more_processes_than_pairs_fill_up_with_weight_zero(packed) -> None:
    """Catches a process without a pass (DDP would hang), or one whose filling counts."""
    shares = shares_of(policy_of(packed), Pairs([(5, 6), (1, 2)]), np.array([0, 1]), 1, 4)
    assert sorted([counts for _, counts in share] for share in shares) == [[False], [False], [True], [True]]
    assert [[i for i, _ in share] for share in shares[2:]] == [[[1]], [[1]]], "the shortest pair fills up"
