"""Keys: the same on every machine, other for every difference, and refused where they could not be."""

from __future__ import annotations

import copy
import json
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from spin_core.errors import BadInput
from spin_core.store.keys import canonical, config_payload, key_of, payload

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/keys.json").read_text(encoding="utf-8"))
A, B = "a" * 64, "b" * 64

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=4),
    ),
    max_leaves=12,
)


def same(one: object, other: object) -> bool:
    """Equal and of one type all the way down; 0.0 and −0.0 are one."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_key_golden_payload_keeps_its_key(name):
    """Catches a change of the canonical form: every stored output would be lost."""
    entry = GOLDEN[name]
    made = payload(**entry["arguments"])
    assert key_of(made) == entry["key"]


def test_key_golden_file_holds_ten_different_keys():
    """Catches a golden file in which two payloads collide."""
    assert len({entry["key"] for entry in GOLDEN.values()}) == len(GOLDEN) >= 10


@settings(max_examples=200)
@given(values, values)
def test_canonical_two_values_have_one_text_only_if_they_are_the_same(one, other):
    """Catches 1 ≡ 1.0 ≡ true, "1" ≡ 1, and lists flattened into text."""
    assert (canonical(one) == canonical(other)) == same(one, other)


@settings(max_examples=200)
@given(values)
def test_canonical_reads_back_as_the_same_value(value):
    """Catches floats cut to fewer digits and text that is escaped away."""
    assert same(json.loads(canonical(value)), value)


@settings(max_examples=200)
@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), scalars, min_size=2, max_size=6), st.randoms()
)
def test_canonical_order_of_names_does_not_matter(mapping, rng):
    """Catches keys that depend on the order in which a profile lists its fields."""
    items = list(mapping.items())
    rng.shuffle(items)
    assert canonical(dict(items)) == canonical(mapping)


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    if isinstance(value, dict):
        return [leaf for name in value for leaf in leaves(value[name], (*path, name))]
    if isinstance(value, list):
        return [leaf for i in range(len(value)) for leaf in leaves(value[i], (*path, i))]
    return [path]


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_key_any_field_or_input_changed_is_another_key(name):
    """Catches a field that is forgotten in the key: a stale output would be served."""
    made = payload(**GOLDEN[name]["arguments"])
    keys = {key_of(made)}
    places = leaves(made)
    for path in places:
        changed = copy.deepcopy(made)
        inner = changed
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = [inner[path[-1]]]
        keys.add(key_of(changed))
    assert len(keys) == len(places) + 1


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ({"finetune": {"beta": float("nan")}}, "config.finetune.beta"),
        ({"finetune": {"beta": float("inf")}}, "config.finetune.beta"),
        ({"a": [1, (2, 3)]}, "config.a[1]"),
        ({"a": {1, 2}}, "config.a"),
        ({"a": Path("/x")}, "config.a"),
        ({"a": b"x"}, "config.a"),
        ({"a": Colour.RED}, "config.a"),
        ({"a": {1: 2}}, "config.a"),
        ({"a": "\ud800"}, "config.a"),
        ({"a": "e\u0301"}, "config.a"),
        ({"e\u0301": 1}, "config"),
        ({"a": 2**70}, "config.a"),
        ({"a": object}, "config.a"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_payload_value_that_json_cannot_hold_is_refused_with_its_path(value, place):
    """Catches `default=str`, pickling, NaN in keys, and two spellings of one letter under one key."""
    with pytest.raises(BadInput, match=rf"^{place.replace('[', '.').replace(']', '.')}[:,]"):
        payload("finetune", 1, value, {})


def test_key_of_handmade_payload_is_checked_too():
    """Catches two spellings of one letter under two keys that look alike in a record."""
    with pytest.raises(BadInput, match=r"^config\.a: .* normal form C"):
        key_of({"store": 1, "stage": "x", "version": 1, "config": {"a": "e\u0301"}, "inputs": {}})


def test_payload_endless_nesting_is_refused():
    """Catches a RecursionError for a person."""
    loop: list = []
    loop.append(loop)
    with pytest.raises(BadInput, match="nested deeper"):
        payload("finetune", 1, {"a": loop}, {})


@pytest.mark.parametrize(
    ("stage", "version", "inputs"),
    [
        ("Fine", 1, {}),
        ("../x", 1, {}),
        ("", 1, {}),
        ("finetune", 0, {}),
        ("finetune", True, {}),
        ("finetune", "1", {}),
        ("finetune", 1, {"model": "/models/x"}),
        ("finetune", 1, {"model": A[:-1]}),
        ("finetune", 1, {"pairs": [A, None]}),
        ("finetune", 1, {"pairs": [A, A.upper()]}),
    ],
)
def test_payload_wrong_stage_version_or_digest_is_refused(stage, version, inputs):
    """Catches paths as inputs (keys would depend on the machine) and names that leave the store's folders."""
    with pytest.raises(BadInput):
        payload(stage, version, {}, inputs)


def test_payload_order_of_listed_inputs_matters():
    """Catches sorting: the pairs of t and of t−1 have roles."""
    assert key_of(payload("finetune", 1, {}, {"pairs": [A, B]})) != key_of(
        payload("finetune", 1, {}, {"pairs": [B, A]})
    )


class Inner(BaseModel):
    beta: float = 1
    added: int = Field(default=0, json_schema_extra={"omit_default": True})


class Outer(BaseModel):
    inner: Inner = Inner()
    many: list[Inner] = []
    named: dict[str, Inner] = {}
    late: Inner = Field(default=Inner(), json_schema_extra={"omit_default": True})
    seed: int = 0


def test_config_payload_field_added_later_is_left_out_at_its_default_everywhere():
    """Catches losing every stored output when a field is added."""
    config = Outer(many=[Inner()], named={"x": Inner()})
    plain = {"beta": 1.0}
    assert config_payload(config) == {"inner": plain, "many": [plain], "named": {"x": plain}, "seed": 0}


def test_config_payload_field_added_later_counts_when_set():
    """Catches leaving the field out for good: the new behaviour would be served the old output."""
    config = Outer(inner=Inner(added=3), many=[Inner(added=4)], late=Inner(beta=2))
    made = config_payload(config)
    assert made["inner"] == {"beta": 1.0, "added": 3}
    assert made["many"] == [{"beta": 1.0, "added": 4}]
    assert made["late"] == {"beta": 2.0}


def test_config_payload_default_written_as_integer_is_the_float_it_means():
    """Catches `beta: float = 1` and `beta: 1.0` in a profile being two keys."""
    assert canonical(config_payload(Inner())) == canonical(config_payload(Inner(beta=1.0)))
