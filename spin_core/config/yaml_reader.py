"""YAML from a person: plain data of bounded size, and what is wrong with it in one sentence.

Refused are tags that would build objects, a key given twice, and aliases: a few of them expand to gigabytes.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from spin_core.errors import BadInput, one_line

# The longest profile that we ship has 2 KB; parsing this much takes a second.
LONGEST = 128 << 10


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads 5e-7 as a number, which YAML 1.1 takes for a string."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep)
        seen: set[Any] = set()
        for key, _ in node.value:
            value = self.construct_object(key, deep=True)
            if value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {value!r} is given twice", key.start_mark)
            seen.add(value)
        return made

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "YAML aliases are not used here; write it out", mark)
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_file(path: Path) -> Any:
    """The data of a file. Raises BadInput naming file and line."""
    try:
        with path.open("rb") as file:
            return read(file.read(LONGEST + 1), str(path))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}).") from None


def read(text: bytes, where: str) -> Any:
    """The data of a text; `where` begins the sentence of a BadInput."""
    if len(text) > LONGEST:
        raise BadInput(f"{where}: over {LONGEST >> 10} KiB is too long for such a file; is it the right one?")
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}:" if mark else ""
        if "could not determine a constructor" in (error.problem or ""):
            tag = str(error.problem).partition("tag ")[2][:200]
            raise BadInput(f"{where}:{line} the tag {tag} would run code; not valid YAML here, take it out.") from None
        raise BadInput(f"{where}:{line} not valid YAML: {str(error.problem)[:200]}.") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise BadInput(f"{where}: not valid YAML ({one_line(error, kind=True)}).") from None
