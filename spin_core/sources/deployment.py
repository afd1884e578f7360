"""How a model is deployed: what its generation_config.json says of sampling.

Is not: how anything here samples by itself; engines take nothing from that file but the tokens at which answers end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from spin_core.config.generate import Decoding
from spin_core.errors import BadInput

FILE = "generation_config.json"
NOT_APPLIED = {
    "repetition_penalty": 1, "no_repeat_ngram_size": 0, "min_p": 0, "typical_p": 1, "num_beams": 1, "epsilon_cutoff": 0,
    "eta_cutoff": 0,
}  # fmt: skip
"""Settings of decoding that are not here, and the value at which each does nothing."""


def decoding_of(model: Path) -> Decoding | None:
    """The decoding that the model in this folder is served with; None where it does not say.

    `do_sample: false` is greedy; else temperature, top_p and top_k as they stand there, and what is not there cuts
    nothing off (as vLLM serves it; transformers would take its own top_k of 50). Raises BadInput for other figures than
    a decoder takes.
    """
    file = model / FILE
    held = _read(file)
    try:
        given = {name: held[name] for name in Decoding.model_fields if held.get(name) is not None}
        if held.get("do_sample") is False:
            return Decoding(temperature=0.0)
        return Decoding(**given) if given or held.get("do_sample") else None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadInput(
            f"{file}: {first['loc'][0]}: {first['msg']}; correct it, or give generate.temperature."
        ) from None


def not_applied(model: Path) -> str:
    """A sentence on what the file has that changes answers and no engine here applies; empty where there is none.
    Raises BadInput where it is no JSON object."""
    held = _read(model / FILE)
    names = [f"{name} {held[name]}" for name, off in NOT_APPLIED.items() if held.get(name) not in (None, off)]
    return f"{FILE} also has {', '.join(names)}, which no engine here applies: served answers differ." if names else ""


def _read(file: Path) -> dict[str, Any]:
    """Empty where there is no such file."""
    try:
        held = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not isinstance(held, dict):
            raise ValueError("a JSON object is needed")
    except ValueError as error:
        raise BadInput(f"{file}: not a JSON object ({error}); copy the model again.") from None
    return held
