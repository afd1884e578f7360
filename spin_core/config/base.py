"""The base of every config section: frozen, strict about names, finite numbers only."""

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class Section(BaseModel):
    """A part of a profile. Unknown keys are refused; values cannot change after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads `yes`, `on` and `true` as a truth value, which pydantic would take for 1."""
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError("a number is needed, not true or false")
        return value


def added_field(*default: Any, **how: Any) -> Any:
    """A pydantic Field that came later than the first keys: its default is left out of a key, so that keys made before
    it stay valid."""
    return Field(*default, **how, json_schema_extra={"omit_default": True})


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field's annotation takes, alone or in a union; None where it takes a plain value or a list."""
    options = () if get_origin(annotation) is list else (annotation, *get_args(annotation))
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def listed_section(annotation: Any) -> type[BaseModel] | None:
    """The section of which a field takes a list, each as a mapping; else None."""
    item = get_args(annotation)[0] if get_origin(annotation) is list else None
    return item if isinstance(item, type) and issubclass(item, BaseModel) else None


def _is_number(annotation: Any) -> bool:
    """Whether a field takes numbers and no truth: `int`, `float`, `int | None`, and these with limits."""
    if get_origin(annotation) is Annotated:
        return _is_number(get_args(annotation)[0])
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if bool in kinds:
        return False
    return any(one in (int, float) or (one is not annotation and _is_number(one)) for one in kinds)
