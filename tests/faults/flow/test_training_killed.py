"""Training that is killed in any optimiser step, and at any point of a checkpoint, goes on to the same bytes.

One thread, float32, CPU. Every step leaves a checkpoint, so that kills meet the writing of one.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.faults.fault import LEVEL, Fault
from tests.faults.flow.cases import Case, case_of
from tests.faults.flow.forks import KILLED, Forks
from tests.faults.flow.smoke import Smoke

STEPS = 12  # of both stages with these settings
LONGER: dict[str, dict[str, Any]] = {"sft": {"epochs": 3.0}, "finetune": {"schedule_epochs": 3.0}}
OPERATIONS_PR = 4

Trainings = dict[str, Case]


@pytest.fixture(scope="module")
def trainings(forks: Forks, smoke: Smoke) -> Trainings:
    """Both stages that train, of twelve steps, as they end undisturbed."""
    return {stage: case_of(forks, smoke.store, stage, stage, **longer) for stage, longer in LONGER.items()}


@pytest.mark.full
def test_training_killed_in_any_step_ends_in_the_same_bytes(trainings: Trainings) -> None:
    """Catches optimiser state, data order, metrics or learning rate that a resume does not restore; a resume from a
    resume that begins anew; and a half-written checkpoint that is trained on."""

    def trial(rng: random.Random) -> None:
        case = trainings[rng.choice(sorted(trainings))]
        with case.store() as place:
            reached = 0
            for _ in range(rng.choice((1, 1, 2))):
                step = rng.randint(1, STEPS - 1 - reached)
                killed = case.run(place, step=step, after=rng.uniform(0, 1.5 * case.seconds / STEPS))
                assert killed.status != 1, killed
                # The step's own checkpoint may have been on its way.
                reached += step - 1
            again = case.assert_recovers(place)
            assert again.resumed_at >= reached or not again.computed, f"began anew: {again.resumed_at} < {reached}"

    fault = Fault("R4", "kill -9 in a random optimiser step, once or twice", pr=3, night=20, release=100)
    fault.run(trial)


def test_training_that_ends_before_any_operation_of_a_checkpoint(trainings: Trainings) -> None:
    """Catches a checkpoint that has its name before it is complete, one old checkpoint too few, and leftovers that stop
    the next one."""
    case = trainings["finetune"]
    with case.store() as place:
        count = case.run(place, operation=-1).operations
    assert count > 60, "the hook does not see them"
    points = range(count)

    def trial(operation: int) -> None:
        with case.store() as place:
            assert case.run(place, operation=operation).status == KILLED
            case.assert_recovers(place)

    fault = Fault("R4", "the process ends before operation k on a checkpoint, every k")
    if LEVEL == "pr":
        fault.what = "the process ends before operation k on a checkpoint, some k"
        points = sorted(random.Random(4).sample(points, OPERATIONS_PR))  # type: ignore[assignment]
    fault.each(points, trial)
