"""R19, R20, R21: the same key everywhere for the same meaning, another for every other one."""

from __future__ import annotations

import importlib
import random
import typing
import warnings
from itertools import combinations
from types import UnionType
from typing import Any

import pytest
from pydantic import BaseModel, Field, create_model

from spin_core.config.runtime import Runtime
from spin_core.store.keys import canonical, config_payload, key_of, payload
from spin_core.store.store import Store
from tests.faults.fault import Fault
from tests.faults.store import keychecks
from tests.faults.store.battery import compute, folder
from tests.faults.store.kinds import Step, kinds

R19 = Fault(
    "R19",
    "keys in a process of another hash seed, time zone, language, home, folder and order",
    pr=20,
    night=20,
    release=60,
)
R20 = Fault("R20", "a random field or input of a key's payload changes", pr=500, night=20000, release=100000)
R20_BYTE = Fault("R20", "a random byte of an output changes: another digest and key", pr=30, night=500, release=2000)
R20_FIELD = Fault("R20", "each field of each stage's config changes, and a field is added")
R20_RUNTIME = Fault("R20", "no field of Runtime is in any stage's config")
R21 = Fault("R21", "NaN, ±∞, −0.0, 1 and 1.0 and true and text, nesting, NFC and NFD, surrogates, objects")
STAGES = [
    "reformat",
    "tokenize",
    "sft",
    "generate",
    "gather",
    "score",
    "finetune",
    "evaluate",
    "harness",
    "gate",
    "report",
]


def test_keys_are_the_same_in_twenty_other_processes(tmp_path):
    """Catches set order, locale, time zone, home, working directory or argument order in a key."""
    keychecks.check_same_everywhere(tmp_path, range(R19.count), R19)


def test_key_random_changes_of_a_payload_are_other_keys():
    """Catches a field that is forgotten in the key: a stale output would be served."""
    keychecks.check_sensitive(key_of, R20)


def test_key_random_byte_of_an_output_changes_what_is_made_from_it():
    """Catches inputs that enter by name, size or time."""

    def trial(rng: random.Random) -> None:
        step = kinds()[rng.choice(sorted(kinds()))]
        name = rng.choice([name for name, data in step.files.items() if data])
        data = bytearray(step.files[name])
        data[rng.randrange(len(data))] ^= rng.randrange(1, 256)
        digests = []
        for files in (step.files, {**step.files, name: bytes(data)}):
            with folder() as place:
                digests.append(compute(Store(place), Step(step.payload, files)).digest)
        keys = {key_of(payload("report", 1, {}, {"from": digest})) for digest in digests}
        assert len(keys) == 2

    R20_BYTE.run(trial)


def example(kind: Any) -> Any:
    """Some value of a config field's type."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        needed = {n: example(f.annotation) for n, f in kind.model_fields.items() if f.is_required()}
        return kind.model_construct(**needed)
    if typing.get_origin(kind) is list:
        return [example(typing.get_args(kind)[0])]
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, UnionType):
        return example(typing.get_args(kind)[0])
    return {int: 1, float: 0.5, bool: True, str: "x", dict: {"x": 1}}[typing.get_origin(kind) or kind]


def changed(model: BaseModel, at: str = "") -> list[tuple[str, BaseModel]]:
    """(path, copy of the config with another value in this one field), for every field at every depth."""
    variants = []
    for name in type(model).model_fields:
        value, path = getattr(model, name), f"{at}{name}"
        if isinstance(value, BaseModel):
            variants += [(deep, model.model_copy(update={name: inner})) for deep, inner in changed(value, f"{path}.")]
        else:
            variants.append((path, model.model_copy(update={name: other(value)})))
    return variants


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list | tuple):
        return [*value, "x"]
    if isinstance(value, dict):
        return {**value, "another": 1}
    return "another" if value is None else f"{value}x"


def config_of(stage: str) -> BaseModel:
    return example(importlib.import_module(f"spin_core.stages.{stage}").Config)


def stage_key(stage: str, config: BaseModel) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic, of a value that the field would not have taken
        return key_of(payload(stage, 1, config_payload(config), {}))


@pytest.mark.parametrize("stage", STAGES)
def test_key_each_field_of_a_stage_config_is_in_it(stage):
    """Catches a setting that changes the answer and not the key; and one that is there twice under two names."""
    config = config_of(stage)
    seen = {stage_key(stage, config): "the config itself"}

    def trial(point: tuple[str, BaseModel]) -> None:
        path, one = point
        key = stage_key(stage, one)
        assert key not in seen, f"{path} has the key of {seen[key]}"
        seen[key] = path

    R20_FIELD.each(changed(config), trial)


@pytest.mark.parametrize("stage", STAGES)
def test_key_field_added_with_its_old_behaviour_as_default_changes_nothing(stage):
    """Catches losing every stored output when a field is added; and a key that does not see the new field set."""
    config = config_of(stage)
    field = Field(default=0, json_schema_extra={"omit_default": True})
    grown = create_model("Config", __base__=type(config), added_later=(int, field))

    def trial(value: int) -> None:
        key = stage_key(stage, grown.model_construct(**config.__dict__, added_later=value))
        assert (key == stage_key(stage, config)) == (value == 0)

    R20_FIELD.each([0, 1], trial)


def test_key_no_runtime_field_is_in_any_config():
    """Catches a batch size or device in a key: another machine would compute everything again."""

    def trial(stage: str) -> None:
        paths = [path.rpartition(".")[2] for path, _ in changed(config_of(stage))]
        assert not set(paths) & set(Runtime.model_fields), stage
        assert "runtime" not in config_of(stage).model_dump(mode="json", warnings=False)

    R20_RUNTIME.each(STAGES, trial)


DISTINCT = [0, 1, -1, 0.5, True, False, None, "", "0", "1", "1.0", "true", "True", "null", "None", [], {}, [1], ["1"]]
DISTINCT += [
    1.0,
    1e0 + 2**-52,
    2**53,
    float(2**53),
    "é",
    "É",
    "e",
    [[1]],
    [1, 1],
    {"a": 1},
    {"a": {"b": 1}},
    {"a.b": 1},
]
DISTINCT += [{"a": 1, "b": 2}, {"a": 2, "b": 1}, ["a", 1], "ℌ", "H", "ｱ", "ア", "\u200b", "\u2028", "\n", "\r\n"]
DISTINCT += [0.1, 0.1 + 0.2, 0.3]


def test_key_values_that_json_cannot_hold_are_refused():
    """Catches `default=str`, NaN in keys, and two spellings of one letter under one key."""
    keychecks.check_refused(key_of, R21)
    keychecks.check_refused(lambda made: key_of(payload(*(made[n] for n in ("stage", "version", "config", "inputs")))))


def test_key_values_that_look_alike_have_their_own():
    """Catches 1 ≡ 1.0 ≡ true ≡ "1", text that is normalised away, and lists or maps that are flattened."""

    def key(value: Any) -> str:
        return key_of(payload("finetune", 1, {"v": value}, {}))

    def trial(pair: tuple[Any, Any]) -> None:
        assert key(pair[0]) != key(pair[1])

    R21.each(combinations(DISTINCT, 2), trial)


def test_key_values_that_are_the_same_have_one():
    """Catches −0.0, and the order of names at any depth, in a key."""
    deep = {"a": {"x": 1, "y": [{"p": 1, "q": 2}]}, "b": 2}
    turned = {"b": 2, "a": {"y": [{"q": 2, "p": 1}], "x": 1}}

    def trial(pair: tuple[Any, Any]) -> None:
        assert canonical(pair[0]) == canonical(pair[1])

    R21.each([(0.0, -0.0), (deep, turned), ([0.0], [-0.0])], trial)
