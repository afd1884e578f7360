"""The table's own test: a count that cannot show a failure proves nothing."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from tests.faults import fault
from tests.faults.fault import Fault, table, upper_bound


@pytest.fixture(autouse=True)
def _not_in_the_table(monkeypatch):
    monkeypatch.setattr(fault, "TRIED", [])


def test_fault_that_fails_sometimes_is_counted_and_raised_with_its_points():
    """Catches a battery that swallows the failures of single trials, and one that stops at the first."""
    made = Fault("R1", "odd numbers")

    def trial(number: int) -> None:
        assert number % 2, "even"

    with pytest.raises(AssertionError, match=r"(?s)R1 odd numbers: failed at 0: .*even.*; 2: "):
        made.each(range(4), trial)
    assert (made.trials, made.failures) == (4, 2)


def test_fault_random_trials_differ_and_are_the_same_every_time():
    """Catches trials that all try the same thing, and failures that nobody can repeat."""
    first, again = [], []
    Fault("R2", "numbers", pr=5, night=5, release=5).run(lambda rng: first.append(rng.random()))
    Fault("R2", "numbers", pr=5, night=5, release=5).run(lambda rng: again.append(rng.random()))
    assert first == again and len(set(first)) == 5


@pytest.mark.parametrize(
    ("failures", "trials", "expected"),
    # Exact one-sided Clopper–Pearson limits: 1 − 0.05^(1/n) for none; the others from tables.
    [(0, 1, 0.95), (0, 30, 0.0950), (0, 1000, 0.00299), (1, 10, 0.3942), (10, 10, 1.0)],
)
def test_upper_bound_is_the_tabled_one(failures: int, trials: int, expected: float):
    """Catches a two-sided limit or the plain rate in the table."""
    assert upper_bound(failures, trials) == pytest.approx(expected, abs=1e-4)


def test_table_has_a_line_for_each_fault_in_order():
    """Catches sorting R10 before R2, and leaving a failure out."""
    lines = table([Fault("R10", "b", trials=10, failures=1), Fault("R2", "a", trials=30), Fault("S1", "c")])
    assert [line.split()[0] for line in lines[1:]] == ["R2", "R10", "S1"]
    assert lines[2].split() == ["R10", "b", "10", "1", "39", "%"]


def test_trials_of_another_process_are_added():
    """Catches a fault that two processes tried counted twice or once only, and one of the other alone left out."""
    fault.TRIED.append(Fault("R1", "a", trials=3, failures=1))
    fault.add([asdict(Fault("R1", "a", trials=4, failures=2)), asdict(Fault("R2", "b", trials=5))])
    assert [(one.id, one.trials, one.failures) for one in fault.TRIED] == [("R1", 7, 3), ("R2", 5, 0)]
