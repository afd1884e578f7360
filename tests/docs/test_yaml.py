"""Every profile of a page, and every part of one, is valid as the page has it."""

from __future__ import annotations

import pytest

from spin_core.errors import BadInput
from tests.docs import blocks, profiles
from tests.docs.blocks import Block

SHOWN = blocks.of("yaml")


@pytest.mark.parametrize("block", SHOWN, ids=[block.place for block in SHOWN])
def test_profile_of_a_page_is_valid(block):
    """Catches a page with a setting that was renamed, or two that exclude each other."""
    profiles.validated(block)


def test_some_are_whole_profiles():
    """Catches a reader of names that takes every block for a part: a whole one has to name its model itself."""
    assert {profiles.name_of(block) for block in SHOWN} >= {"mine.yaml", "from1.yaml"}


@pytest.mark.parametrize(
    "text",
    ["finetune: {betta: 1}", "# mine.yaml\niterations: 1", "dataset:\n  path: a\n  sets: [{path: b}]", "a: [", "- 1"],
)
def test_wrong_profile_is_refused(text):
    """Catches a check that takes whatever a page says."""
    with pytest.raises((BadInput, TypeError)):
        profiles.validated(Block("p.md", 1, "yaml", text, ()))
