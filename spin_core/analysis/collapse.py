"""Signs of a collapse on held-out rows: real answers that are lost, and answers that never end, are empty, loop, repeat
themselves, drift in length or become alike; of every decoder that evaluate measured.

Is not: a decision (the gate decides) nor a metric of quality: a model can be right more often when it decodes greedily
and leave a third of its sampled answers without an end. Each sign is a change against the start on the same rows that
is clear by its interval, gives the figures, and names the settings to change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from spin_core.analysis.decoders import DEPLOYED, GREEDY, kinds, name_of
from spin_core.analysis.format import bounds, percent, show
from spin_core.analysis.results import ModelResults, is_finite, paired
from spin_core.analysis.statistics import Interval, bootstrap
from spin_core.config.gate import Gate

Clear = Callable[[Sequence[tuple[float, float]], float], Interval | None]
NLL_RISE = 2.0
"""Times the NLL of θ_0 at which real answers are lost. A sound iteration of the paper's raises it, too: by 18 % where
rewards/real is −4.6 at β 0.1 and answers have 250 tokens of 1 nat, so four of them by 94 %."""
NLL_LEAST = 0.1  # nats per token that count as a rise at all, for models that are nearly sure of the answers
SHARE_RISE = 0.02  # of the answers: more that never end, or are empty, are seen by users
REPETITION_RISE = 0.1  # of an answer's 4-grams on average, and of the answers that loop
RATIO_RISE = 0.1  # of the real length, where answers are longer than real ones
LENGTHS = 2.0  # times as long as real answers, or as short
DISTINCT_FALL = 0.5  # of what was distinct
REMEDY = (
    "set finetune.sft_weight (for example 1) or raise it, lower finetune.lr, or raise finetune.beta (of losses without "
    "it finetune.unpaired.a or tspin.alpha; of dft lower dft.gamma)"
)
"""True of every loss: the gate does not know by which one its models were trained."""
RISES = (  # of a figure of each answer: its field, the least rise, what it is a share of, what the answers then do
    ("cut", SHARE_RISE, "answers", "never end (they reach evaluate.max_new_tokens)"),
    ("empty", SHARE_RISE, "answers", "are empty"),
    ("loops", REPETITION_RISE, "answers", "loop"),
    ("repetition", REPETITION_RISE, "4-grams of the answers", "were there before in the same answer"),
)


def signs(new: ModelResults, old: ModelResults, how: Gate, seed: int) -> list[str]:
    """The signs of a collapse of `new` beside `old`, each in words and with what to change, without a full stop."""

    def clear(pairs: Sequence[tuple[float, float]], least: float) -> Interval | None:
        """The mean rise, where all of its interval lies above `least`."""
        moved = [after - before for before, after in pairs]
        if len(moved) < how.min_rows or fmean(moved) <= least:  # cheaper than an interval that cannot be clear
            return None
        rise = bootstrap(moved, how.confidence, how.resamples, seed)
        return rise if rise and rise.low > least else None

    texts = [_broken(new), _likelihood(new, old, clear)]
    for kind in measured_on_both(new, old):
        for field, least, part, do in RISES:
            pairs = paired(old.column(f"{kind}_{field}"), new.column(f"{kind}_{field}"))
            if rise := clear(pairs, least):
                was, now = (percent(fmean(side)) for side in zip(*pairs, strict=True))
                text = f"{now} of the {part} {do}, of {old.label}'s {was} (rise {bounds(rise.low, rise.high)})"
                texts.append(_said(new, kind, text))
        texts += [_length(new, old, kind, clear), _distinct(new, old, kind, clear)]
    return [f"{text}; {REMEDY}" for text in texts if text]


def measured_on_both(new: ModelResults, old: ModelResults) -> list[str]:
    """The kinds of answers that both models gave."""
    fields = [{name for row in model.answers.values() for name in row} for model in (new, old)]
    return kinds(fields[0] & fields[1])


def named(model: ModelResults, kind: str) -> str:
    """How its answers were drawn: `greedily`, `at temperature 1`, `as deployed, temperature 0.6`."""
    name = name_of(kind, model.metrics)
    return "greedily" if kind == GREEDY else f"as {name}" if kind == DEPLOYED else f"at {name}"


def _said(new: ModelResults, kind: str, text: str) -> str:
    return f"answers drawn {named(new, kind)}: {text}"


def _broken(new: ModelResults) -> str:
    lost = sum(not is_finite(row["nll"]) for row in new.answers.values() if "nll" in row)
    return f"{lost:,} held-out answers have no finite likelihood: the weights are broken" if lost else ""


def _likelihood(new: ModelResults, old: ModelResults, clear: Clear) -> str:
    """By tokens, as the metric."""
    tokens = new.column("tokens")
    mean = fmean(tokens.values()) if tokens else 1.0
    weighed = [
        {key: nll * tokens.get(key, mean) / mean for key, nll in model.column("nll").items()} for model in (old, new)
    ]
    before = fmean(weighed[0].values()) if weighed[0] else 0.0
    rise = clear(paired(*weighed), max(NLL_LEAST, (NLL_RISE - 1) * before))
    return f"real answers became much less likely, NLL {show(before)} to {show(before + rise.value)}" if rise else ""


def _length(new: ModelResults, old: ModelResults, kind: str, clear: Clear) -> str:
    """Answers that became clearly longer, above the real ones' length and farther from it than they were below; or that
    are twice as long or short and were less so."""
    real, name = new.column("tokens"), f"{kind}_tokens"
    pairs = paired(old.column(name), new.column(name))
    if not pairs or not real:
        return ""
    mean = fmean(real.values())
    was, now = (fmean(side) for side in zip(*pairs, strict=True))
    far, farther = abs(math.log(max(was, 0.5) / mean)), abs(math.log(max(now, 0.5) / mean))
    is_longer = now > mean and farther > far and clear(pairs, RATIO_RISE * mean)  # not from 0.83 of the real to 1.02
    is_far = farther > max(far, math.log(LENGTHS)) and (clear(pairs, 0) or clear([(b, a) for a, b in pairs], 0))
    if not (is_longer or is_far):
        return ""
    text = (
        f"{now:.1f} tokens on average, {now / mean:.2f} times the real {mean:.1f}, {old.label}'s {was / mean:.2f} times"
    )
    return _said(new, kind, text)


def _distinct(new: ModelResults, old: ModelResults, kind: str, clear: Clear) -> str:
    name = f"{kind}_distinct"
    pairs = paired(old.column(name), new.column(name))
    if not pairs:
        return ""
    was, now = (fmean(side) for side in zip(*pairs, strict=True))
    if not clear([(after, before) for before, after in pairs], DISTINCT_FALL * was):
        return ""
    return _said(
        new, kind, f"{percent(now)} of their runs of three words are distinct, of {old.label}'s {percent(was)}"
    )
