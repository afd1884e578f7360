"""Each page is followed: what can run here in seconds is run, in order, in a folder of its own; the rest is marked."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.docs import blocks
from tests.docs.blocks import plain

RUNS = ("RUN", "demo-3fa9c1", "demo-77b0e2")
"""What pages call a run of the reader's store."""


PAGES = sorted({block.page for block in blocks.blocks() if block.runs})


def of_this_store(command: str, store: Path) -> str:
    """The command with the name of the run that the store has."""
    run = (store / "spinloop-store-v1" / "latest").readlink().name
    return re.sub(rf"\b(?:{'|'.join(RUNS)})\b", run, command)


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
