"""What the history of a finetune's metrics warns of: real answers that become far less likely, a saturated accuracy.

Is not: a stop rule (nothing is ended, nothing enters a key) nor a look at held-out rows (evaluate does that, and the
report puts what the gate reports beside each alarm). Pure
Python over the lines of metrics.jsonl. An alarm depends on the lines up to its step alone, so a run that goes on from
a checkpoint gives the alarms of one that was never interrupted, and the report draws the same ones from the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from spin_core.analysis.format import show
from spin_core.analysis.results import number
from spin_core.config.choices import Loss
from spin_core.config.finetune import Finetune

# Means over windows, as the rewards of single steps differ by their pairs. Five steps are the fewest whose spread says
# how far chance moves such a mean; a twentieth of the run leaves time to act, and a long run no more chances of a false
# alarm than a short one (20 windows at most).
LEAST, PARTS = 5, 20
CLEAR = 3.0
"""Standard errors by which the means of two windows must differ to count as different. Of made-up runs of 20 to 2,000
steps whose real rewards only wander (0.1 from step to step, margins grow to 2), at most one in 25 gave an alarm; with 2
standard errors one in 7."""
SHARE = 0.1
"""Of the margin: a fall of the real answers below it is no matter, the margin then comes from the generated ones."""
LESS_LIKELY, NATS = 1.25, 1.0
"""Times an answer's own −log p, and nats at least, that real answers lose where it is a collapse: at the beginning of
sound trainings they lose a tenth and rise again, and against greedy opponents they always lose some per cent."""
SATURATED, WINDOWS = 0.99, 3
"""Accuracy that counts as 1 (a few pairs of equal answers never become right), and for how many windows in a row."""
WEIGHT: dict[Loss, str] = {
    "unpaired": "raise finetune.unpaired.a",
    "tspin": "raise finetune.tspin.alpha",
    "dft": "lower finetune.dft.gamma",
}
"""What lets a pair weigh less once it is learnt, of losses without beta. A larger τ of dft does the opposite."""
DECIDED = 3.0
"""Margin at which a pair weighs less than a twentieth in the sigmoid loss's gradient; accuracy is 1 long before."""


Metrics = Mapping[str, Any]
"""The metrics of one optimiser step, a row of metrics.jsonl."""


class Alarm(TypedDict):
    """One sentence, and the step at which it first held."""

    step: int
    text: str


@dataclass(frozen=True)
class Mean:
    """Mean of one figure over a window's pairs, and its standard error by the spread between the steps."""

    value: float
    error: float

    def above(self, other: Mean) -> bool:
        """Clearly greater than `other`."""
        return self.value - other.value > CLEAR * math.hypot(self.error, other.error)


def remedies(part: Finetune) -> str:
    """What of these settings to change against a collapse: only such as this loss has."""
    anchor = "raise" if part.sft_weight else "set"
    example = "" if part.sft_weight else " (for example 1)"
    return f"lower finetune.lr, {WEIGHT.get(part.loss, 'raise finetune.beta')}, {anchor} finetune.sft_weight{example}"


def alarms(history: Sequence[Metrics], steps: int, part: Finetune) -> list[Alarm]:
    """Of the first steps of a training of `steps` steps by `part`: each kind of alarm once, where it first held."""
    size = _size(steps)
    windows = [history[end - size : end] for end in range(size, len(history) + 1, size)]
    raised: list[Alarm] = []
    # A training that is saturated near its end has the right number of epochs: fewer would not have reached it.
    half = steps // 2 // size
    for check, most in ((_falls, len(windows)), (_saturated, half)):
        for count in range(1, min(len(windows), most) + 1):
            if text := check(windows[:count], part):
                step = count * size
                raised.append({"step": step, "text": f"step {step:,} of {steps:,}: {text}"})
                break
    return sorted(raised, key=lambda alarm: alarm["step"])


def watch(steps: int, part: Finetune, note: Callable[[str], None]) -> Callable[[Sequence[Metrics]], None]:
    """To be called with the growing history after every step: gives each alarm to `note`, once, as soon as it is
    there."""
    noted: set[str] = set()

    def look(history: Sequence[Metrics]) -> None:
        if len(history) % _size(steps):
            return
        for alarm in alarms(history, steps, part):
            if alarm["text"] not in noted:
                noted.add(alarm["text"])
                note(alarm["text"])

    return look


def _size(steps: int) -> int:
    return max(LEAST, math.ceil(steps / PARTS))


def _falls(windows: list[Sequence[Metrics]], part: Finetune) -> str:
    """Real answers less likely than under the opponent and than ever before, while the margin still grows.

    Compared with the best window so far and not with the one just before, to which a slow fall is no difference. Where
    rewards are log-probs the first window stands for the opponent, which is the model as it was.
    """
    names = ("rewards/real", "rewards/margins", "logps/real")
    means = [[_mean(window, name) for name in names] for window in windows]
    known = [(real, margin, logp) for real, margin, logp in means if real and margin and logp]
    if len(known) < max(2, len(windows)):
        return ""
    (real, margin, logp), earlier = known[-1], known[:-1]
    best, less, likely = max(earlier, key=lambda means: means[0].value)
    falling = best.above(real) and real.value < min(before.value for before, *_ in earlier)
    first, apart = (known[0][0].value, known[0][1].value) if part.rewards_logps else (0.0, 0.0)
    lost = real.value - first < -SHARE * (margin.value - apart)
    if not (falling and lost and margin.above(less)):
        return ""
    if likely.value - logp.value < max(NATS, (LESS_LIKELY - 1) * -likely.value) or not likely.above(logp):
        return ""
    return (
        f"real answers become less likely while margins grow: rewards/real fell from {show(best.value)} to "
        f"{show(real.value)}, logps/real from {show(likely.value)} to {show(logp.value)}, rewards/margins rose from "
        f"{show(less.value)} to {show(margin.value)}; against collapse {remedies(part)} or train fewer epochs."
    )


def _saturated(windows: list[Sequence[Metrics]], part: Finetune) -> str:
    """Of dft never: its real answers' term is their plain likelihood, which no margin takes out of the gradient."""
    if part.loss == "dft":
        return ""
    last = windows[-WINDOWS:]
    means = [(_mean(window, "rewards/accuracies"), _mean(window, "rewards/margins")) for window in last]
    known = [(right, margin) for right, margin in means if right and margin]
    if len(known) < WINDOWS or any(right.value < SATURATED or margin.value < DECIDED for right, margin in known):
        return ""
    right, margin = known[-1]
    return (
        f"rewards/accuracies was {show(right.value)} for {sum(map(len, last)):,} steps, with margins of "
        f"{show(margin.value)}: saturated, so that further steps learn little and only push log-probs apart; train "
        "fewer epochs or lower finetune.lr."
    )


def _mean(window: Sequence[Metrics], name: str) -> Mean | None:
    """None where a step has no such figure (an SFT run), or one that is not finite."""
    values = [number(step.get(name)) for step in window]
    weights = [number(step.get("pairs")) or 1.0 for step in window]
    known = [value for value in values if value is not None]
    if len(known) < len(window):
        return None
    total, n = sum(weights), len(window)
    mean = sum(w * x for w, x in zip(weights, known, strict=True)) / total
    squares = sum((w * (x - mean)) ** 2 for w, x in zip(weights, known, strict=True))
    return Mean(mean, math.sqrt(squares * n / (n - 1)) / total)
