"""The run form of both Prefect UIs, made from the config model: its sections, help texts, choices and bounds; every
field is empty, which means: as the profile has it."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic.fields import FieldInfo

from spin_core.config.base import listed_section, section_of
from spin_core.config.profile import PROFILES, Config, load_profile

PROFILE_NAMES = tuple(sorted(path.stem for path in PROFILES.glob("*.yaml")))
Profile = Literal[PROFILE_NAMES]  # type: ignore[valid-type]
AS_IT_IS = "as in the profile"
NOTHING = "#/definitions/AsItIs"
SWITCH = {"type": "string", "enum": ["true", "false"]}  # three positions: on, off, as the profile has it


def form(model: type[BaseModel] = Config, path: str = "") -> dict[str, Any]:
    """The JSON schema of what may be changed in a profile: the sections and fields of `model`, none of them required.
    No field has a default here, because the form would fill it in and send it with every run."""
    shown, schemas = {}, model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        inner, listed = section_of(field.annotation), listed_section(field.annotation)
        shown[name] = _folded(inner, field, path + name) if inner else _box(schemas[name], field, path + name)
        if listed:
            boxes = form(listed, f"{path}{name}.")
            words = ("title", "description")
            boxes["properties"] = {
                each: {word: box[word] for word in words} | _accepted(box) for each, box in boxes["properties"].items()
            }
            shown[name]["items"] = {**boxes, "additionalProperties": False}
    return {"type": "object", "title": path.rstrip(".") or "settings", "properties": shown}


def given(settings: dict[str, Any], model: type[BaseModel] | None = Config) -> dict[str, Any]:
    """The fields that were filled in, as a profile would have them. `""` is how an empty text is written."""
    changes: dict[Any, Any] = {}
    for name, value in settings.items():
        field = model.model_fields.get(name) if model else None
        inner = section_of(field.annotation) if field else None
        if name == "overrides" and isinstance(value, dict):  # JSON has no numbers as names
            value = {int(t) if t.isdecimal() else t: parts for t, parts in value.items()}
        elif isinstance(value, dict):
            value = given(value, inner)
        elif isinstance(value, list) and field and (listed := listed_section(field.annotation)):
            value = [given(one, listed) if isinstance(one, dict) else one for one in value]
        elif value is None and inner:
            changes[name] = None  # a section that is left out
        if value is not None and value not in ("", {}, []):  # 0 and False are values
            changes[name] = "" if value == '""' else value
    return changes


def _folded(model: type[BaseModel], field: FieldInfo, path: str) -> dict[str, Any]:
    """A section, shut at first: with all of them open the form is 11 000 pixels high. `anyOf` is what both UIs show, a
    switch between nothing and the section's boxes; its first option holds for every section. `then` is what the server
    checks, so that it names the field that is wrong, and not the section. Neither UI reads it, which is why it stands
    there: the first one lays what is in `allOf` or beside `anyOf` over the options, and shows a box of JSON.

    That UI takes `{}` (boxes emptied, or a section in this one opened) for the first option of type object. So that
    this is the one with the boxes, the option before it has its type beside a reference, where that UI does not look;
    a section that can be left out shuts with its last box, because its type cannot stand beside `anyOf`."""
    boxes = form(model, f"{path}.")
    checked = {name: _accepted(box) for name, box in boxes["properties"].items()}
    nothing: dict[str, Any] = {"type": "object", "title": AS_IT_IS, "properties": {}}
    shown: dict[str, Any] = {"anyOf": [nothing, {**boxes, "title": "change"}]}
    if field.default is None:
        leave_out = {"type": "null", "title": "leave out", "description": "The run has no such section."}
        shown["anyOf"].append(leave_out)
    else:
        shown["type"] = "object"
        nothing["$ref"] = NOTHING
    return {
        "title": path,
        "description": field.description or "",
        **shown,
        "if": {},
        "then": {
            "type": ["object", "null"] if field.default is None else "object",
            "properties": checked,
            "additionalProperties": False,
        },
    }


def _accepted(box: dict[str, Any]) -> dict[str, Any]:
    """What may come from a box, or from the API: also null, and a switch's true or false as such."""
    if "enum" in box:
        return {"enum": [*box["enum"], *([True, False] if box["enum"] == SWITCH["enum"] else []), None]}
    return {**box, "type": [box["type"], "null"]} if "type" in box else box


def _box(schema: dict[str, Any], field: FieldInfo, path: str) -> dict[str, Any]:
    """One field: its JSON schema, its path as `--set` takes it, its help and what the profiles have."""
    schema = {name: value for name, value in schema.items() if name not in ("default", "omit_default")}
    if schema.get("type") == "boolean":
        schema = dict(SWITCH)
    options = [_choice(option) for option in schema.get("anyOf", []) if option.get("type") != "null"]
    if options:
        schema = options[0] if len(options) == 1 else {"anyOf": options}
    json_only = "As JSON, with every name in quotes." if schema.get("type") == "object" else ""
    bounds = next(filter(None, map(_bounds, [schema, *schema.get("anyOf", [])])), "")
    text = " ".join(part for part in (field.description, bounds, json_only, _in_profiles(field, path)) if part)
    return {**schema, "title": path, "description": text}


def _bounds(schema: dict[str, Any]) -> str:
    """What numbers a box takes; the UIs show it only once a number is refused."""
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{low:g} to {high:g}."
    named = {"at least": low, "above": above, "at most": high, "below": below}
    text = " and ".join(f"{word} {bound:g}" for word, bound in named.items() if bound is not None)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _choice(option: dict[str, Any]) -> dict[str, Any]:
    """An option of several; a constant as a list to choose from, where it would be a box to type it into."""
    if "const" in option:
        return {"type": option["type"], "title": option["const"], "enum": [option["const"]]}
    return option


def _in_profiles(field: FieldInfo, path: str) -> str:
    """What the profiles have in this field, so that a person sees what an empty box means."""
    having, default = defaultdict(list), ""
    for name, config in CONFIGS.items():
        value: Any = config
        for part in path.split("."):
            value = getattr(value, part, None)
        if value is None:  # this profile lacks the section
            default = _shown(field.get_default(call_default_factory=True, validated_data={}))
        elif _shown(value) not in ("", name):
            having[_shown(value)].append(name)
    texts = [f"{value} ({', '.join(names)})" for value, names in having.items()]
    if [len(names) for names in having.values()] == [len(CONFIGS)]:
        texts = list(having)
    return " ".join([f"In the profiles: {', '.join(texts)}."] * bool(texts) + [f"Default: {default}."] * bool(default))


def _shown(value: Any) -> str:
    if value in ({}, []):
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=lambda one: one.model_dump(exclude_defaults=True))


def _nothing(schema: dict[str, Any]) -> None:
    """The JSON schema of AsItIs: without a type, see `_folded`."""
    schema.clear()
    schema.update(title=AS_IT_IS, properties={})


class AsItIs(BaseModel):
    """What `NOTHING` refers to, in the definitions of a flow's parameters."""

    model_config = ConfigDict(json_schema_extra=_nothing)


class Form:
    """The JSON schema of settings that may have anything in them: `form`, and what it refers to."""

    def __get_pydantic_json_schema__(self, _: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        # As pydantic_core's functions of these names make it; by no other way is a definition added.
        definition = {**AsItIs.__pydantic_core_schema__, "ref": "AsItIs"}
        added: Any = {"type": "definitions", "schema": {"type": "definition-ref", "schema_ref": "AsItIs"}}
        place = handler(added | {"definitions": [definition]})["$ref"]
        schema: dict[str, Any] = json.loads(json.dumps(form()).replace(NOTHING, place))
        return {**schema, "additionalProperties": False}


CONFIGS = {name: load_profile(name)[0] for name in PROFILE_NAMES}
Settings = Annotated[dict[str, Any], Form()]
