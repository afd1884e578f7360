"""What the next training can at best do, from its pairs and the opponent's log-probs of them, before it is paid for.

Is not: a prediction of a metric. It counts the pairs that can teach: the gradient of a pair whose answers are the same
is 0, and one whose real answer the opponent already gives the higher log-prob has little left to gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spin_core.analysis.format import percent, show
from spin_core.analysis.results import number

LEAST = 0.05
"""Share of pairs that must be able to teach for an iteration to be likely to pay."""


def forecast(
    logps: Sequence[tuple[float, float]], identical: Sequence[bool], tokens: int
) -> dict[str, float]:  # fmt: skip
    """Of training pairs with log-probs (real, generated) under the opponent: shares `identical` and `preferred` (not
    identical, and the real answer is likelier already), and `entropy`: nats per token of the generated answers, which
    have `tokens` in all. Of answers sampled at temperature 1 that is the opponent's entropy, of greedy ones less."""
    count = max(1, len(logps))
    return {
        "identical": sum(identical) / count,
        "preferred": sum(a > b and not same for (a, b), same in zip(logps, identical, strict=True)) / count,
        "entropy": -sum(generated for _, generated in logps) / max(1, tokens),
    }


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """What score's summary says of the next training; and, where it is unlikely to pay, that. Empty for a summary from
    before there was a forecast."""
    made = summary.get("forecast")
    held = made if isinstance(made, dict) else {}
    identical, preferred, entropy = (number(held.get(name)) for name in ("identical", "preferred", "entropy"))
    if identical is None or preferred is None or entropy is None:
        return []
    left = max(0.0, 1 - identical - preferred)
    said = [
        f"Of the training pairs {percent(identical)} are identical, and in {percent(preferred)} the opponent already "
        f"gives the real answer the higher log-prob; generated answers have {show(entropy)} nats a token. At best "
        f"{percent(left)} of the pairs teach."
    ]
    if left < LEAST:
        said.append(
            "This iteration is unlikely to pay: stop here, take rows that the model was not trained on, or another "
            "generate.decoder."
        )
    return said
