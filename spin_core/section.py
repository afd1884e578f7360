"""The base of every config section: frozen, strict about names, finite numbers only."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of a profile. Unknown keys are refused; values cannot change after validation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())
