"""The HTML templates that lie beside this file, and values put into them: every value is escaped.

Templates, style sheet and script begin with the name of the module that they belong to, by which the recorded digest of
a stage's code covers them (`spin_core.store.code`). `--c0` … `--c5`, `--ink` and `--rule` of the style sheet are the
colours that `spin_core.report.charts` draws with.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from spin_core.analysis.format import plain, short, time_text
from spin_core.analysis.results import number

if TYPE_CHECKING:
    import jinja2


def rendered(template: str, **values: object) -> str:
    """A template with its values."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"plain": plain, "short": short, "number": number, "time": time_text}
    return environment
