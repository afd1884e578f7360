"""The opponent's decoder, the decoders of evaluation, and whether the two differ in a way that matters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from spin_core.config.evaluate import Evaluate
from spin_core.config.generate import Decoding
from spin_core.config.profile import Config

GREEDY, SAMPLED, DEPLOYED = "greedy", "sampled", "deployed"
OF_MODEL = "drawn as the model's generation_config.json says"


def measured(part: Evaluate, deployed: Decoding | None) -> dict[str, Decoding]:
    """Kind of answer → how it is drawn, of those that evaluate measures. A kind's name begins its figures' names."""
    if not part.answers:
        return {}
    kinds = {GREEDY: Decoding(temperature=0.0)} | ({SAMPLED: Decoding()} if part.sampled else {})
    kinds |= {f"t{one:g}": Decoding(temperature=one) for one in part.temperatures}
    known = deployed is None or deployed in kinds.values()
    return kinds if known or deployed is None else {**kinds, DEPLOYED: deployed}


def kinds(metrics: Iterable[str]) -> list[str]:
    """The kinds of answers that a model's metrics, or the fields of its rows, are of: greedy, sampled, by rising
    temperature, as deployed."""
    marks = (re.fullmatch(r"truncated/(.+)|(.+)_tokens", name) for name in metrics)
    there = {mark[1] or mark[2] for mark in marks if mark}
    between = {float(one[1:]): one for one in there if re.fullmatch(r"t[0-9.]+(e-[0-9]+)?", one)}
    order = [GREEDY, SAMPLED, *(between[degree] for degree in sorted(between)), DEPLOYED]
    return [one for one in order if one in there]


def name_of(kind: str, metrics: Mapping[str, float]) -> str:
    """What a kind of answer is called: `greedy`, `temperature 1`, `temperature 0.3`, `deployed, temperature 0.6`."""
    if kind in (GREEDY, SAMPLED):
        return {GREEDY: "greedy", SAMPLED: "temperature 1"}[kind]
    if kind != DEPLOYED:
        return f"temperature {kind.removeprefix('t')}"
    figures = {field: metrics[f"deployed/{field}"] for field in Decoding.model_fields if f"deployed/{field}" in metrics}
    how = str(Decoding.model_validate(figures)).removeprefix("sampled at ") if figures else ""
    return f"deployed, {how}" if how else "deployed"


def sentences(config: Config, deployed: Decoding | None) -> list[str]:
    """How the opponent and the held-out answers are decoded; and what follows where the two differ in a way that
    matters.

    `deployed`: what the model's generation_config.json says, None where it says nothing or was not read.
    """
    opponents = [config.at(t).generate.drawing_as(deployed) for t in range(config.start.iteration, config.iterations)]
    ways = list(dict.fromkeys(OF_MODEL if one.decoder == DEPLOYED else str(one.decoding) for one in opponents))
    part = config.evaluate
    read = [str(how) for how in measured(part, deployed if part.deployed else None).values()]
    judged = f"Held-out answers are {', '.join(read)}." if read else "No held-out prompt is answered."
    of_model = f" The model's generation_config.json says {deployed}." if deployed else ""
    said = [f"The opponent's answers are {', then '.join(ways)}. {judged}{of_model}"]
    plain = all(one.decoding.is_plain and one.decoder != DEPLOYED for one in opponents)
    if plain and (why := _served(config, deployed)):
        said.append(
            f"The opponent is sampled at temperature 1, and {why}: against such an opponent SPIN is close to SFT and "
            "cannot take back what that decoding over-produces (loops, bland answers); set generate.decoder: "
            f"{'deployed' if deployed and deployed.temperature else 'greedy'}."
        )
    return said


def _served(config: Config, deployed: Decoding | None) -> str:
    """How users get answers, where that is known and is not sampling at temperature 1."""
    if deployed is not None:
        return "" if deployed.is_plain else f"the model is deployed {deployed} (generation_config.json)"
    metric = config.gate.metric
    by_harness = metric == "auto" and config.harness
    if config.evaluate.exact_match and not by_harness and metric in ("auto", "exact_match/greedy"):
        return "the best model is chosen by greedy answers"
    return ""
