"""What every reader of SFT data gives: one record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A row as found: file (relative to the source, empty for a single file), line or row number from 1, fields.

    `reject` says why it is no usable object; then it has no fields, and `detail` says what was seen.
    """

    file: str
    line: int
    fields: dict[str, Any]
    reject: str = ""
    detail: str = ""
