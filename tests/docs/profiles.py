"""A profile, or a part of one, as a page shows it: read and validated by the product's own code."""

from __future__ import annotations

from typing import Any

from spin_core.config.profile import Config, parse
from spin_core.config.yaml_reader import read
from tests.docs.blocks import Block

LEAST: dict[str, Any] = {"model": {"path": "builtin:tiny-llama"}, "dataset": {"path": "builtin:tasks"}}


def name_of(block: Block) -> str:
    """The file that a block says it is, in its first line (`# mine.yaml`); empty where it is only part of one."""
    first = block.text.partition("\n")[0].split()
    return first[1].rstrip(":") if len(first) > 1 and first[0] == "#" and first[1].rstrip(":").endswith(".yaml") else ""


def validated(block: Block) -> Config:
    """The config of a block. One with a name is a whole profile; a part takes the place of the sections of LEAST.
    Raises BadInput."""
    data = read(block.text.encode(), block.place)
    if not name_of(block):
        data = LEAST | data
    return parse(data, block.place)
