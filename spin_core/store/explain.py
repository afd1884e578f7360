"""Why a step is not cached, in words: the first thing that differs from the nearest step that is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from spin_core.store.keys import KeyPayload, canonical, key_of, take_of
from spin_core.store.record import Record
from spin_core.store.store import Store
from spin_core.store.takes import in_words

UNSET = object()
SHOWN = 60
DEPTH = 20


def differences(old_payload: KeyPayload, new_payload: KeyPayload) -> list[str]:
    """What changed from one key's payload to another's, a phrase each, the most telling first.

    The version, then the stage's own section of the config, then the rest of it, then the inputs, then how often the
    step was replaced.
    """
    stage = new_payload["stage"]
    lines = []
    if old_payload["stage"] != stage:
        lines.append(f"stage: {old_payload['stage']} → {stage}")
    if old_payload["version"] != new_payload["version"]:
        lines.append(f"version of {stage}: {old_payload['version']} → {new_payload['version']}")
    if old_payload["store"] != new_payload["store"]:
        lines.append(f"store format: {old_payload['store']} → {new_payload['store']}")
    changed = list(_leaves("", old_payload["config"], new_payload["config"]))
    lines += [text for _, text in sorted(changed, key=lambda leaf: (not leaf[0].startswith(f"{stage}."), leaf[0]))]
    lines += [text for _, text in _changed_inputs(old_payload, new_payload)]
    was, now = take_of(old_payload), take_of(new_payload)
    return lines + ([] if was == now else [f"{stage}: replaced {was} → {now} times"])


def _leaves(path: str, old: Any, new: Any) -> Iterator[tuple[str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _leaves(f"{path}.{name}" if path else name, old.get(name, UNSET), new.get(name, UNSET))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and _of_mappings(old + new):
        for number, (was, now) in enumerate(zip(old, new, strict=True)):  # dataset.sets.0.weight
            yield from _leaves(f"{path}.{number}", was, now)
    elif old is UNSET or new is UNSET or canonical(old) != canonical(new):
        was, now = _show(old), _show(new)
        yield path, f"{path} changed" if was == now else f"{path}: {was} → {now}"


def _of_mappings(values: list[Any]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _show(value: Any) -> str:
    if value is UNSET:
        return "(unset)"
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _changed_inputs(old_payload: KeyPayload, new_payload: KeyPayload) -> list[tuple[str, str]]:
    """(input's name, what changed) for each input that is not the same content."""
    old, new = old_payload["inputs"], new_payload["inputs"]
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in old or name not in new:
            lines.append((name, f"input {name} {'added' if name in new else 'removed'}"))
        elif old[name] != new[name]:
            lines.append((name, f"input {name} changed"))
    return lines


def nearest(store: Store, payload: KeyPayload) -> Record | None:
    """The stored record of this stage that differs in the fewest things; of several the one with the smallest key."""
    # They come by key, and `min` takes the first of equals.
    records = store.records(payload["stage"])
    return min(records, key=lambda record: len(differences(record.payload, payload)), default=None)


def explain(store: Store, payload: KeyPayload) -> str:
    """One phrase: "cached", "never ran before", or what differs first, followed up to the step that caused it.

    "Cached" here means that the record and its folder are there; only a lookup verifies them.
    """
    stage, key = payload["stage"], key_of(payload)
    record = store.record(stage, key)
    if record is not None and store.holds(record):
        return "cached"
    if record is not None:
        return "its output is missing from the store"
    if take := take_of(payload):
        return f"{in_words(take)}, and that output is no longer in the store"
    near = nearest(store, payload)
    return "never ran before" if near is None else _cause(list(store.records()), near.payload, payload, DEPTH)


def compare(store: Store, record: Record) -> str:
    """What sets a stored step apart from the nearest other one of its stage: the first difference, followed up."""
    others = [other for other in store.records(record.stage) if other.key != record.key]
    near = min(others, key=lambda other: len(differences(other.payload, record.payload)), default=None)
    if near is None:
        return "the only one of its stage"
    return f"differs from {near.key[:12]} in {_cause(list(store.records()), near.payload, record.payload, DEPTH)}"


def _cause(records: list[Record], old: KeyPayload, new: KeyPayload, depth: int) -> str:
    """The first difference; if that is an input, the difference between the steps that made its two contents."""
    first = differences(old, new)[0]
    inputs = _changed_inputs(old, new)
    if not inputs or first != inputs[0][1] or depth == 0:
        return first
    # An input whose makers are known explains more than one that came from outside.
    for name, text in inputs:
        was, now = _only_in(old, new, name), _only_in(new, old, name)
        for pair in _makers(records, was, now):
            reason = _cause(records, pair[0].payload, pair[1].payload, depth - 1)
            return f"{text} because {reason.rpartition(' because ')[2]}"
    return first


def _only_in(one: KeyPayload, other: KeyPayload, name: str) -> list[str]:
    """The digests of an input that the other payload's input of that name does not have, in order."""
    have, lack = (
        [v] if isinstance(v, str) else v for v in (one["inputs"].get(name, []), other["inputs"].get(name, []))
    )
    return [digest for digest in have if digest not in lack]


def _makers(records: list[Record], was: list[str], now: list[str]) -> list[tuple[Record, Record]]:
    """Two different records of one stage that made something of `was` and something of `now`: the nearest such pair."""
    pairs = [
        (old, new)
        for new in records
        if new.digest in now
        for old in records
        if old.digest in was and old.stage == new.stage and old.key != new.key
    ]
    pairs.sort(key=lambda pair: (len(differences(pair[0].payload, pair[1].payload)), pair[0].key, pair[1].key))
    return pairs[:1]
