"""How a model is deployed: what its generation_config.json says of sampling.

Is not: how anything here samples by itself; engines take nothing from that file but the tokens at which answers end.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from spin_core.config.generate import Decoding
from spin_core.errors import BadInput

FILE = "generation_config.json"


def decoding_of(model: Path) -> Decoding | None:
    """The decoding that the model in this folder is served with; None where it does not say.

    `do_sample: false` is greedy; else temperature, top_p and top_k as they stand there, and what is not there cuts
    nothing off (as vLLM serves it; transformers would take its own top_k of 50). Raises BadInput for other figures than
    a decoder takes.
    """
    file = model / FILE
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ValueError("a JSON object is needed")
        given = {name: held[name] for name in Decoding.model_fields if held.get(name) is not None}
        if held.get("do_sample") is False:
            return Decoding(temperature=0.0)
        return Decoding(**given) if given or held.get("do_sample") else None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadInput(
            f"{file}: {first['loc'][0]}: {first['msg']}; correct it, or give generate.temperature."
        ) from None
    except ValueError as error:
        raise BadInput(f"{file}: not a JSON object ({error}); copy the model again.") from None
