"""The run form of the Prefect UI, made from the config model: the same sections, help texts, choices and bounds, every
field empty, which means: as the profile has it."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema, create_model
from pydantic.fields import FieldInfo

from spin_core.config import PROFILES, Config

PROFILE_NAMES = tuple(sorted(path.stem for path in PROFILES.glob("*.yaml")))
Profile = Literal[PROFILE_NAMES]  # type: ignore[valid-type]


def settings_form(model: type[BaseModel] = Config, name: str = "Settings") -> type[BaseModel]:
    """A model of what may be changed in a profile: the sections and fields of `model`, each of which may be left out.
    It says what the form looks like; that a value is right is for `model` to say."""
    fields: dict[str, Any] = {}
    for title, field in model.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None:
            part = settings_form(inner, title)
            fields[title] = (part, Field(default_factory=part, title=title, description=field.description))
        else:
            kind = Annotated[Any, WithJsonSchema(_schema(field))]
            # A factory, because a default would be shown in the form's box and be sent with every run.
            fields[title] = (kind, Field(default_factory=lambda: None, title=title, description=_help(field)))
    made: type[BaseModel] = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
    return made


def given(settings: BaseModel) -> dict[str, Any]:
    """The fields that were filled in, as a profile would have them."""
    found = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        value = given(value) if isinstance(value, BaseModel) else value
        if value not in (None, "", {}):
            found[name] = value
    return found


def _section(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def _schema(field: FieldInfo) -> dict[str, Any]:
    """The field's JSON schema without a default. A switch has three positions here: on, off, as the profile has it."""
    kind: Any = Annotated[field.annotation, *field.metadata, None]  # type: ignore[valid-type]
    schema = TypeAdapter(kind).json_schema()
    if schema.get("type") == "boolean":
        return {"type": "string", "enum": ["true", "false"]}
    for option in schema.get("anyOf", []):
        if option.get("type") != "null":
            return dict(option)
    return schema


def _help(field: FieldInfo) -> str:
    if field.is_required():
        return field.description or ""
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, "", [], {}) else f" Default: {default}."
    return f"{field.description or ''}{shown}"
