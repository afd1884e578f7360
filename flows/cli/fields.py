"""The fields of a profile as help: the sections with a line each, and one section's fields with default, what they may
be, and meaning. All of it is the config model's own."""

from __future__ import annotations

import difflib
import json
import shutil
import textwrap
from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from spin_core.config.base import listed_section, section_of
from spin_core.config.profile import Config
from spin_core.errors import BadInput

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
WIDEST = 100  # columns of running text


def sections_help(command: str) -> str:
    """What `spinloop run --help` says of the fields: a line for each section, and for each field outside of them."""
    lines = [
        f"fields of a profile, by section (`spinloop {command} --help finetune` and `--help",
        "finetune.lora` print a section's, `--set finetune.beta=0.5` changes one):",
    ]
    for name, field in Config.model_fields.items():
        default = "" if _inner(field) or field.is_required() else f" ({default_text(field)})"
        text = textwrap.shorten(first_sentence(field.description or ""), 64 - len(default), placeholder=" …")
        lines.append(f"  {name:<11} {text}{default}")
    return "\n".join(lines)


def section_help(path: str) -> str:
    """The fields of the section `path`, with those of the sections in it in a line each; or the one field that it is.
    Raises BadInput naming the sections there are."""
    field, model = _at(path)
    if model is None:
        return _entry(path, field)
    first = ".0" * bool(listed_section(field.annotation))
    lines = [textwrap.fill(f"{path}: {field.description or ''}", width()), ""]
    return "\n".join([*lines, *(_entry(f"{path}{first}.{name}", one) for name, one in model.model_fields.items())])


def _entry(path: str, field: FieldInfo) -> str:
    """Name, default, what it may be, and below what it means."""
    section, allowed, text = _inner(field), choices_text(field), field.description or ""
    head = f"  {path}" if section else f"  {path} ({default_text(field)})" + (f": {allowed}" if allowed else "")
    text = f"a section: `--help {path}`. {first_sentence(text)}" if section else text
    return "\n".join(
        textwrap.fill(line, width(), initial_indent=indent, subsequent_indent=" " * 6, break_on_hyphens=False)
        for line, indent in ((head.strip(), "  "), (text, " " * 6))
    )


def _at(path: str) -> tuple[FieldInfo, type[BaseModel] | None]:
    """The field at `path`, and the section that it holds, if it does; numbers in the path count the items of a list.
    Raises BadInput naming the sections there are."""
    model: type[BaseModel] | None = Config
    field = None
    for name in (part for part in path.split(".") if not part.isdecimal()):
        field = model.model_fields.get(name) if model else None
        if field is None:
            break
        model = _inner(field)
    if field is None:
        known = [at for at, _ in sections()]
        near = difflib.get_close_matches(path, [*known, *(at for at, _ in settings())], n=1)
        meant = f"did you mean {near[0]}? The" if near else "the"
        raise BadInput(f"--help {path}: a profile has no such section; {meant} sections are {', '.join(known)}.")
    return field, model


def sections(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section by its path, sections in sections too."""
    for name, field in model.model_fields.items():
        if inner := _inner(field):
            yield path + name, inner
            yield from sections(inner, f"{path}{name}.")


def settings(model: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field that `--set` takes, by its path; of a list of sections those of the first."""
    for name, field in model.model_fields.items():
        if inner := _inner(field):
            yield from settings(inner, f"{path}{name}." + ("0." if listed_section(field.annotation) else ""))
        else:
            yield path + name, field


def choices(annotation: Any) -> list[str]:
    """The values that a field may have, where these are few: those of a Literal, true and false."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) is dict:
        return []
    return list(dict.fromkeys(value for one in get_args(annotation) for value in choices(one)))


def choices_text(field: FieldInfo) -> str:
    """What a field may be: its choices, or its bounds; empty where it may be anything of its kind."""
    said = choices(field.annotation)
    parts = [" | ".join(one or '""' for one in said)] if said else []
    if said and any(get_origin(one) is list for one in (field.annotation, *get_args(field.annotation))):
        parts = [f"a list of {parts[0]}" if get_origin(field.annotation) is list else f"{parts[0]}, or a list"]
    for limit in field.metadata:
        parts += [
            f"{sign} {value}" for name, sign in BOUNDS.items() if (value := getattr(limit, name, None)) is not None
        ]
    if NoneType in get_args(field.annotation) and parts:
        parts.append("or nothing")
    return ", ".join(parts)


def first_sentence(text: str) -> str:
    """Of a description, for a list."""
    return text.partition("; ")[0].partition(". ")[0].rstrip(".") + "."


def width() -> int:
    """Columns that help is wrapped at."""
    return min(WIDEST, shutil.get_terminal_size().columns)


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    return section_of(field.annotation) or listed_section(field.annotation)


def default_text(field: FieldInfo) -> str:
    """A field's default as JSON; `required` where there is none."""
    if field.is_required():
        return "required"
    return json.dumps(field.get_default(call_default_factory=True, validated_data={}), default=str, ensure_ascii=False)
