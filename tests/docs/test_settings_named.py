"""The settings that a sentence names by their full path (`finetune.beta`) are settings."""

from __future__ import annotations

import re

import pytest

from spin_core.config.base import listed_section, section_of
from spin_core.config.profile import Config
from tests.docs import blocks

SECTIONS = [name for name, field in Config.model_fields.items() if section_of(field.annotation)]
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(SECTIONS)})(?:\.[a-z0-9_]+)+")
FILES = re.compile(r"\.(py|md|json|jsonl|yaml|safetensors|arrow)$")


def is_a_setting(path: str) -> bool:
    """Whether a profile can have it. What is below a mapping, or a place in a list, is the user's."""
    model = Config
    for part in path.split("."):
        if model is None:
            return False
        if part.isdecimal():
            continue
        if part not in model.model_fields:
            return False
        annotation = model.model_fields[part].annotation
        if str(annotation).startswith("dict"):
            return True
        model = section_of(annotation) or listed_section(annotation)
    return True


def named(text: str) -> list[str]:
    """The paths in what is set as code, file names aside."""
    spans = re.findall(r"`([^`]+)`", text)
    return [path for span in spans for path in PATH.findall(span) if not FILES.search(path)]


def test_settings_that_pages_name_exist():
    """Catches a sentence with a setting that was renamed, moved to another section, or never was."""
    every = [(page.name, path) for page in blocks.pages() for path in named(blocks.outside(page))]
    assert len(every) > 150
    assert not {f"{page}: {path}" for page, path in every if not is_a_setting(path)}


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("finetune.beta", True),
        ("finetune.betta", False),
        ("finetune.lora.rank", True),
        ("finetune.beta.x", False),
        ("dataset.sets.0.weight", True),
        ("dataset.columns.prompt", True),
    ],
)
def test_path_is_followed_to_its_field(path, known):
    """Catches a walk that ends early, for which every path is one."""
    assert is_a_setting(path) is known
    assert named(f"`--set {path}=1` and `tests/{path}`") == [path]


def test_names_of_files_are_no_settings():
    """Catches a pattern that reads them as such."""
    assert named("`spin_core/stages/gate.py`, `model.safetensors`, `gate.md`") == []
