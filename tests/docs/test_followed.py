"""Each page is followed: what can run here in seconds is run, in order, in a folder of its own; the rest is marked."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.docs import blocks, commands
from tests.docs.blocks import plain

PAGES = sorted({block.page for block in blocks.blocks() if block.runs})


def of_this_store(command: str, store: Path) -> str:
    """The command with names that the reader's folder has in place of those that stand for them."""
    root = store / "spinloop-store-v1"
    run = (root / "latest").readlink().name
    key = min((root / "records" / "finetune").glob("*.json")).stem
    stand = dict.fromkeys(("RUN", "RUN_A", "RUN_B", "A", "B", "demo-3fa9c1", "demo-77b0e2"), run)
    stand |= {"KEY": key, "b3b665": key, "PROFILE": "demo", "MODEL": "org/my-sft-model", "DATA": "my.jsonl", "N": "3"}
    return re.sub(rf"\b(?:{'|'.join(stand)})\b", lambda found: stand[found[0]], command)


@pytest.mark.parametrize("page", PAGES)
def test_page_is_followed(page, reader, spinloop, tmp_path):
    """Catches a command of a page that does not end well in the hands of a reader, and one that needs what a test has
    not (the hub, a GPU, an hour) without a mark that says so."""
    reader(page)
    for block in blocks.of("bash"):
        for command in block.runs if block.page == page else []:
            typed = plain(of_this_store(command, tmp_path / "store"))
            if typed.startswith("spinloop "):
                code, out, err = spinloop(*shlex.split(typed)[1:])
                said = out + err
            else:
                done = subprocess.run(["bash", "-euc", typed], capture_output=True, text=True, timeout=60)
                code, said = done.returncode, done.stdout + done.stderr
            assert code == 0, f"{block.place}: {typed} ended with {code}:\n{said}"
            assert said or not typed.startswith("spinloop "), f"{block.place}: {typed} says nothing"


def test_commands_of_sentences_run(reader, spinloop, tmp_path):
    """Catches the same where a sentence has the command: `spinloop report RUN --preset PROFILE`."""
    folder, run = reader("README.md"), commands.said_and_run()
    assert len(run) > 15
    for command in run:
        (folder / "spinloop.yaml").unlink(missing_ok=True)  # `init` overwrites nothing
        code, out, err = spinloop(*shlex.split(of_this_store(command, tmp_path / "store"))[1:])
        assert code == 0 and out, f"{command} ended with {code}:\n{out}{err}"
