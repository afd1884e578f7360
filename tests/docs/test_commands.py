"""Every command that a page has, in a block or in a sentence, is one that there is."""

from __future__ import annotations

import pytest

from spin_core.errors import BadInput
from tests.docs import blocks, commands

TYPED = [(block, command) for block in blocks.of("bash") for command in block.commands]


@pytest.mark.parametrize(("block", "command"), TYPED, ids=[f"{block.place} {command}"[:70] for block, command in TYPED])
def test_command_of_a_block_is_one_that_there_is(block, command):
    """Catches an option that was renamed, a target, module or extra that is gone, a setting that no profile has."""
    commands.check(command)


def test_commands_in_sentences_are_ones_that_there_are():
    """Catches the same where a sentence has the command. Names alone (`spinloop store gc`) have to be names."""
    said = blocks.inline()
    assert len(said) > 80
    for page, command in said:
        name, *arguments = command.replace("…", "").split()
        try:
            if name != "spinloop" or not commands.names_a_command(arguments):
                commands.check(command)
        except ValueError as wrong:
            raise AssertionError(f"{page}: {wrong}") from None


@pytest.mark.parametrize(
    "wrong",
    [
        "spinloop plan demo --gpu-name h100",
        "spinloop plan demo --set finetune.betta=1",
        "spinloop stroe ls",
        "spinloop store gc --keep-runs many",
        "make dmeo",
        "make demo DEMOS=1",
        "python -m tests.architecture.update_everything",
        ".venv/bin/pip install -e '.[s4]'",
        "deployments/servers.sh",
        "spinlop run demo",
    ],
)
def test_wrong_command_is_refused(wrong):
    """Catches a check that takes whatever a page says."""
    with pytest.raises((ValueError, BadInput)):
        commands.check(wrong)
