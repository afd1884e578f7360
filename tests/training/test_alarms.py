"""Alarms over made-up histories and a real run: raised where they should be, once, and nowhere else."""

import random
from collections.abc import Callable

import pytest
from training_data import DIGESTS, finetune_config, job_at, made_up_pairs, metrics_of, pairs_tree, scored

from spin_core.analysis import training_alarms
from spin_core.analysis.training_alarms import Alarm, watch
from spin_core.config.finetune import Finetune
from spin_core.stages import finetune

Curve = Callable[[float], float]


def alarms(lines: list[dict], steps: int) -> list[Alarm]:
    """Of SPIN's own loss."""
    return training_alarms.alarms(lines, steps, Finetune())


def history(steps: int, real: Curve, generated: Curve, noise: float = 0.1, accuracy: float = 0.9, seed: int = 0):
    """Metrics of a run at β = 0.1 on answers of 20 nats; the curves give rewards over the done part of it (0 to 1)."""
    draw, lines = random.Random(seed), []
    for step in range(1, steps + 1):
        ours = real(step / steps) + draw.gauss(0, noise)
        theirs = generated(step / steps) + draw.gauss(0, 2 * noise)
        lines.append({
            "step": step, "loss": 0.5, "pairs": 64, "rewards/real": ours, "rewards/generated": theirs,
            "rewards/margins": ours - theirs, "rewards/accuracies": accuracy, "logps/real": 10 * ours - 20,
        })  # fmt: skip
    return lines


@pytest.mark.parametrize("steps", [20, 37, 100, 400, 2000])
def test_falling_real_and_growing_margins_alarm_once_with_numbers_and_remedy(steps) -> None:
    """Catches a slow collapse that no window shows against the one before it (twenty windows, each 5 % of the fall),
    one alarm per window, and a sentence without the step, the figures or what to do."""
    for seed in range(5):
        lines = history(steps, lambda part: -2 * part, lambda part: -8 * part, seed=seed)
        (alarm,) = alarms(lines, steps)
        assert alarm["step"] <= steps / 2 or steps < 40
        text = alarm["text"]
        assert text.startswith(f"step {alarm['step']:,} of {steps:,}: real answers become less likely")
        for word in (
            "rewards/real fell from",
            "logps/real from",
            "rewards/margins rose from",
            "finetune.sft_weight",
            "finetune.lr",
        ):
            assert word in text


def test_figures_of_the_sentence_are_the_windows_means() -> None:
    """Catches figures of single steps, of the run so far or of the wrong window: 20 steps are four windows of 5."""
    lines = history(20, lambda part: -round(part * 20), lambda part: -3 * round(part * 20), noise=0.0)
    (alarm,) = alarms(lines, 20)
    assert alarm["step"] == 10
    rewards = "rewards/real fell from −3.000 to −8.000, logps/real from −50.000 to −100.000, rewards/margins rose from"
    assert f"{rewards} 6.000 to 16.000;" in alarm["text"]


SOUND = {
    "real rises": (lambda part: 0.2 * part, lambda part: -1.4 * part),
    "real stays": (lambda part: 0.0, lambda part: -2 * part),
    "nothing moves": (lambda part: 0.0, lambda part: 0.0),
    "falls and recovers above the opponent": (lambda part: part - 0.02, lambda part: -part),
    "a fall while it warms up, then a rise": (lambda part: 4 * part - 0.3 * (part < 0.2), lambda part: -part),
    "a fall of a tenth of the answers' own nats": (lambda part: -0.2 * part, lambda part: -1.4 * part),
    "a fall that is little of the margin": (lambda part: -0.3 * part, lambda part: -8 * part),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_runs_give_no_alarm(name) -> None:
    """Catches alarms at every wobble: of 20 noisy runs of each kind and length at most one alarms."""
    for steps in (20, 100, 400):
        raised = [seed for seed in range(20) if alarms(history(steps, *SOUND[name], seed=seed), steps)]
        assert len(raised) <= 1, (steps, raised)


def test_both_falling_alike_is_not_this_alarm() -> None:
    """Catches a look at the real answers alone: where the margin does not grow, SPIN is not what pushes them down."""
    assert not alarms(history(100, lambda part: -part, lambda part: -part, noise=0.0), 100)
    assert not alarms(history(100, lambda part: -2 * part, lambda part: -part, noise=0.02), 100)


def test_short_or_strange_history_gives_no_alarm() -> None:
    """Catches an answer from one window (nothing to compare), a crash on an SFT run's metrics, NaN or an empty file."""

    def down(part: float) -> float:
        return -5 * part

    assert not alarms([], 0)
    assert not alarms(history(9, down, lambda part: -50 * part, noise=0.0), 9)
    assert not alarms([{"step": i, "loss": 1.0, "rows": 4} for i in range(50)], 50)
    lines = history(50, down, lambda part: -50 * part, noise=0.0)
    assert alarms(lines, 50)
    assert not alarms([{**line, "rewards/real": float("nan")} for line in lines], 50)
    assert not alarms([{**line, "rewards/margins": "?"} for line in lines], 50)
    assert not alarms([{"pairs": 4, "rewards/accuracies": float("inf")}] * 50, 50)


def test_window_mean_weighs_steps_by_their_pairs() -> None:
    """Catches an epoch's last step of one pair that counts as much as 64: here it is wrong in each window, and the
    accuracy is saturated all the same."""
    lines = [
        {**line, "pairs": 64 if i % 5 else 1, "rewards/accuracies": 1.0 if i % 5 else 0.0}
        for i, line in enumerate(history(30, lambda part: 0.0, lambda part: -5.0))
    ]
    assert [alarm["step"] for alarm in alarms(lines, 30)] == [15]


def test_accuracy_of_one_alarms_in_the_third_window_in_a_row() -> None:
    """Catches an alarm at the first lucky window, one that a bad window between does not put off, spam after it, one
    while pairs still teach (margins of 1), and one in the second half, where there is nothing left to save."""
    lines = history(100, lambda part: 0.0, lambda part: -5.0, accuracy=1.0)
    (alarm,) = alarms(lines, 100)
    assert alarm["step"] == 15
    assert "rewards/accuracies was 1.000 for 15 steps, with margins of 5.0" in alarm["text"]
    assert "train fewer epochs or lower finetune.lr" in alarm["text"]
    lines[12]["rewards/accuracies"] = 0.5
    assert [alarm["step"] for alarm in alarms(lines, 100)] == [30]
    assert not alarms([{**line, "rewards/accuracies": 0.97} for line in lines], 100)
    assert not alarms(history(100, lambda part: 0.0, lambda part: -1.0, accuracy=1.0), 100)
    assert not alarms(history(100, lambda part: 0.0, lambda part: -1.0 - 5 * (part > 0.4), accuracy=1.0), 100)


def test_watch_gives_what_the_full_history_gives_and_once() -> None:
    """Catches alarms that look ahead or change with later steps, and a note at every step after the first."""
    lines = history(100, lambda part: -2 * part, lambda part: -4 - 8 * part, accuracy=1.0)
    complete = alarms(lines, 100)
    assert len(complete) == 2
    message: list[tuple[int, str]] = []
    now = 0
    look = watch(100, Finetune(), lambda text: message.append((now, text)))
    for now in range(1, 101):
        look(lines[:now])
        assert alarms(lines[:now], 100) == [alarm for alarm in complete if alarm["step"] <= now]
    assert message == [(alarm["step"], alarm["text"]) for alarm in complete]


class Stopped(Exception):
    """Ends a run in place of a kill."""


def test_finetune_says_and_keeps_its_alarms_also_when_resumed(tmp_path, theta) -> None:
    """Catches a finetune that raises no alarm, an alarm without its own history after a resume, and one that is lost
    with the process that gave it: the run that goes on says it again."""
    config = finetune_config(schedule_epochs=40.0, lr=3e-3)
    tree = pairs_tree(tmp_path / "pairs", made_up_pairs(4), [])
    inputs = {"model": theta, "pairs": [tree], "logps": [scored(tmp_path / "score", theta, tree, config)]}
    events: list[dict] = []
    summary = finetune.run(inputs, config, job_at(tmp_path / "full", DIGESTS, events))
    result = summary["alarms"]
    assert result
    assert [event["note"] for event in events if "note" in event] == [alarm["text"] for alarm in result]
    assert result == alarms(metrics_of(tmp_path / "full" / "out"), 40)
    place = next(n for n, event in enumerate(events) if "note" in event)
    assert events[place - 1]["done"] == result[0]["step"], "as soon as it is known"

    again: list[dict] = []

    def stop(event: dict) -> None:
        again.append(event)
        if event.get("done") == result[0]["step"] + 2 and event["label"] == "finetune":
            raise Stopped

    job = job_at(tmp_path / "stopped", DIGESTS, checkpoint_every=1)
    job.send = stop
    with pytest.raises(Stopped):
        finetune.run(inputs, config, job)
    resumed = job_at(tmp_path / "stopped", DIGESTS, again, checkpoint_every=1)
    second = finetune.run(inputs, config, resumed)
    assert second["resumed_at"] == result[0]["step"] + 1
    assert second["alarms"] == result
    assert [event["note"] for event in again if "note" in event] == [result[0]["text"], *[a["text"] for a in result]]
