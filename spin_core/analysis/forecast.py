"""What the next training can at best do, from its pairs and the opponent's log-probs of them, before it is paid for.

Is not: a prediction of a metric. It counts the pairs that can teach: the gradient of a pair whose answers are the same
is 0, and one whose real answer the opponent already gives the higher log-prob has little left to gain. What it names
beside them are measurements of a model of 0.1 M weights in the nearest of a few situations (docs/regimes.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from spin_core.analysis.format import percent, show
from spin_core.analysis.results import number
from spin_core.config.finetune import Finetune
from spin_core.config.generate import Decoding

LEAST = 0.05
"""Share of pairs that must be able to teach for an iteration to be likely to pay."""
MAP = Path(__file__).with_name("regimes.json")
"""Measured situations, which `make regimes` writes: decoder and objective, what the first pairs were like, what two
iterations changed."""


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


def sentences(summary: Mapping[str, Any], part: Finetune | None = None, opponent: Decoding | None = None) -> list[str]:
    """What score's summary says of the next training; where it is unlikely to pay, that; and for a loss and a decoder
    of the opponent (None: not known) what was measured where pairs were most like these. Empty for a summary from
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
    if part and opponent:
        said += _nearest(identical, preferred, part, opponent)
    return said


def _nearest(identical: float, preferred: float, part: Finetune, opponent: Decoding) -> list[str]:
    """Of the situations measured with this objective and decoder the one whose pairs are most like these, by the two
    shares; entropy is left out, as a token is a character there. Where decoder or anchor are not quite the run's, it
    says so."""
    decoder, objective = decoder_of(opponent), objective_of(part)
    rows = [row for row in _regimes() if (row["decoder"], row["objective"]) == (decoder, objective)]
    if not rows:
        return []
    row = min(rows, key=lambda row: math.dist((row["identical"], row["preferred"]), (identical, preferred)))
    mean, *between = row["gain"]
    bounds = f" [{', '.join(f'{one:+.3f}' for one in between)}]" if between else ""
    same = {"greedy": Decoding(temperature=0.0), "T = 0.3": Decoding(temperature=0.3), "T = 1": Decoding()}
    others = [f"the opponent is {opponent}"] * (opponent != same[decoder])
    others += [f"sft_weight is {part.sft_weight:g}"] * (part.sft_weight not in (0, 1))
    here = f" Here {' and '.join(others)}." if others else ""
    return [
        f"Nearest of the situations measured with a model of 0.1 M weights (docs/regimes.md): {row['situation']!r}, "
        f"with {percent(row['identical'])} identical and {percent(row['preferred'])} preferred. There two iterations "
        f"of {objective} (opponent {decoder}) changed {row['figure']!r} by {mean:+.3f}{bounds}; tuned SFT changed it "
        f"by {row['sft']:+.3f}.{here}"
    ]


def decoder_of(opponent: Decoding) -> Literal["greedy", "T = 0.3", "T = 1"]:
    """The decoder of the map that is most like this one: what leaves unlikely tokens out is like a low temperature."""
    if opponent.temperature == 0:
        return "greedy"
    return "T = 1" if opponent.is_plain or opponent.temperature > 1 else "T = 0.3"


def objective_of(part: Finetune) -> str:
    """What the map calls it."""
    return f"{part.loss}, sft_weight 1" if part.sft_weight else part.loss


@cache
def _regimes() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(MAP.read_text(encoding="utf-8"))
    return rows
