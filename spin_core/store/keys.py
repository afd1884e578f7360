"""The identity of a step: canonical JSON of what its output depends on, and the sha256 of that.

Pure functions. What is not here: the stage's code. It enters by hand, as the stage's VERSION (see `code.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, cast

from pydantic import BaseModel

from spin_core.errors import BadInput

DIGEST = re.compile(r"[0-9a-f]{64}")
STAGE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
MAX_DEPTH = 64


def plain(value: Any, at: str = "", *, nfc: bool = False, depth: int = 0) -> Any:
    """`value` as JSON holds it without loss: str, int, float, bool, None, list, dict with str keys, and nothing else.

    −0.0 becomes 0.0. Raises BadInput with the field's path for every other type (also for subclasses, tuples and
    enums), for NaN and infinity, integers beyond 64 bits, lone surrogates, nesting deeper than 64, and with `nfc` for
    text that is not in Unicode normal form C. `at` is the path of `value` in messages.
    """
    here = at or "the value"
    if depth > MAX_DEPTH:
        raise BadInput(f"{here}: nested deeper than {MAX_DEPTH} levels; make it flatter.")
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        if abs(value) >= 2**64:
            raise BadInput(f"{here}: an integer beyond 64 bits; write it as text.")
        return value
    if kind is float:
        if not math.isfinite(value):
            raise BadInput(f"{here}: {value} has no place in a key or record; give a finite number.")
        return value + 0.0
    if kind is str:
        return _text(value, here, nfc)
    if kind is list:
        return [plain(item, f"{at}[{i}]", nfc=nfc, depth=depth + 1) for i, item in enumerate(value)]
    if kind is dict:
        for name in value:
            if type(name) is not str:
                raise BadInput(f"{here}: the name {name!r} is {type(name).__name__}, not text; quote it.")
        inside = f"{at}." if at else ""
        return {
            _text(name, f"{here}, a name", nfc): plain(item, inside + name, nfc=nfc, depth=depth + 1)
            for name, item in value.items()
        }
    raise BadInput(
        f"{here}: {kind.__name__} cannot enter a key or record; use text, numbers, true/false, null, lists, maps."
    )


def _text(value: str, here: str, nfc: bool) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{here}: the text holds half of a surrogate pair; remove that character.") from None
    if nfc and not unicodedata.is_normalized("NFC", value):
        # Normalising instead would give two texts with different tokens one key.
        raise BadInput(f"{here}: the text is not in Unicode normal form C; write accents as composed characters.")
    return value


def canonical(value: Any, *, nfc: bool = False) -> bytes:
    """The one UTF-8 JSON text of `value`: sorted names, no spaces, floats by `repr`; different values, different bytes.

    `1`, `1.0`, `true` and `"1"` are four values; 0.0 and −0.0 are one. Text stays as it is (NFC and NFD differ).
    Raises BadInput as `plain` does.
    """
    data = plain(value, nfc=nfc)
    return json.dumps(data, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class KeyPayload(TypedDict):
    """What a key is made of. `inputs` are content digests by the input's name."""

    store: int
    stage: str
    version: int
    config: dict[str, Any]
    inputs: dict[str, str | list[str]]
    take: NotRequired[int]
    """How often the step was replaced on purpose (takes.py). A first output has no such field."""


def key_of(payload: Mapping[str, Any]) -> str:
    """The cache key, 64 hex digits. Raises BadInput as `plain` does with `nfc`."""
    return hashlib.sha256(canonical(payload, nfc=True)).hexdigest()


def payload(stage: str, version: int, config: dict[str, Any], inputs: dict[str, str | list[str]]) -> KeyPayload:
    """What a key is made of. `config` is the stage's (`config_payload`); `inputs` are content digests, never paths.

    Raises BadInput for a stage name, version or digest of the wrong form, and as `plain` does.
    """
    if not STAGE.fullmatch(stage):
        raise BadInput(f"stage: {stage!r} is no stage name; use lower-case letters, digits, '-' and '_'.")
    if type(version) is not int or version < 1:
        raise BadInput(f"version of {stage}: {version!r} is not a whole number from 1.")
    for name, value in inputs.items():
        for digest in value if isinstance(value, list) else [value]:
            if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
                raise BadInput(f"inputs.{name}: {digest!r} is no content digest (64 hex digits); give the artifact's.")
    made = {"store": 1, "stage": stage, "version": version, "config": config, "inputs": inputs}
    return cast(KeyPayload, plain(made, nfc=True))


def with_take(payload: KeyPayload, take: int) -> KeyPayload:
    """The payload of the same step after it was replaced `take` times; 0 gives that of its first output."""
    first = {name: value for name, value in payload.items() if name != "take"}
    return cast(KeyPayload, first | ({"take": take} if take else {}))


def take_of(payload: Mapping[str, Any]) -> int:
    """How often the step of a payload was replaced; 0 of a first output, and of what no key has."""
    take = payload.get("take", 0)
    return take if type(take) is int and take > 0 else 0


def input_digests(payload: Mapping[str, Any]) -> list[str]:
    """All content digests that a key's payload names as inputs."""
    return [
        digest for value in payload["inputs"].values() for digest in (value if isinstance(value, list) else [value])
    ]


def config_payload(section: BaseModel) -> dict[str, Any]:
    """`section` as plain JSON, without the fields that are marked to be left out while they hold their default.

    Mark a field that is added later with `json_schema_extra={"omit_default": True}`: keys made before it stay valid.
    """
    pruned: dict[str, Any] = _prune(section, section.model_dump(mode="json"))
    return pruned


def _prune(value: Any, dumped: Any) -> Any:
    if isinstance(value, BaseModel):
        kept = {}
        for name, field in type(value).model_fields.items():
            held, extra = getattr(value, name), field.json_schema_extra
            marked = isinstance(extra, dict) and extra.get("omit_default") is True
            if marked and held == field.get_default(call_default_factory=True, validated_data=value.__dict__):
                continue
            if name in dumped:
                kept[name] = _prune(held, dumped[name])
        return kept
    if isinstance(value, list | tuple):
        return [_prune(item, shown) for item, shown in zip(value, dumped, strict=True)]
    if isinstance(value, dict):
        return {
            shown_name: _prune(item, dumped[shown_name])
            for shown_name, item in zip(dumped, value.values(), strict=True)
        }
    return dumped
