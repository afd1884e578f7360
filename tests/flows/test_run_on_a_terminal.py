"""`spinloop run` on a terminal of 80 and of 140 columns, and Ctrl-C in the midst of it: recordings in text."""

from __future__ import annotations

import gzip
import os
import random
import re
import shutil
import sys
import termios
from pathlib import Path

import pytest

pytest.importorskip("pyte")

from spin_core.report.run_facts import read_steps
from tests.flows.screen import Screen, screen

STEP = re.compile(r"(ran   |Cached)  (\S.*) [0-9a-f]{6}(  [0-9,.]+ s)?")
LONG = ["iterations=1", "finetune.schedule_epochs=60"]
"""A training of 240 steps: the tiny run's 4 are over between two looks at the terminal."""
SETTINGS = {80: [*LONG, "finetune.lr=0.002"], 140: [*LONG, "finetune.lr=0.003"]}
INTERRUPTED = [*LONG, "finetune.lr=0.004"]


def command(tiny: Path, store: Path, settings: list[str]) -> list[str]:
    """A run of which the store has the first half."""
    sets = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, "-m", "flows.cli", "run", str(tiny), "--store", str(store), *sets]


def environment() -> dict[str, str]:
    """Of a person's terminal, and of the test session's server."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    return kept | {"TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[2])}


def record(shown: Screen, place: Path) -> str:
    """Write what was seen: every frame in which something was at work, and all lines at the end."""
    work = [frame for frame in shown.frames if any(line.startswith("next: ") for line in frame)]
    parts = [*("\n".join(frame) for frame in work), "\n".join(shown.lines)]
    text = f"\n{'·' * shown.columns}\n".join(parts)
    place.write_text(text, encoding="utf-8")
    return text


@pytest.fixture(scope="module")
def half_done(finished, tmp_path_factory) -> Path:
    """A store that has the tiny run: another learning rate is still to be computed."""
    store = tmp_path_factory.mktemp("terminal") / "store"
    shutil.copytree(finished[0], store, symlinks=True)
    return store


def test_interrupted_run_leaves_the_terminal_as_it_was(server, tiny, half_done, tmp_path) -> None:
    """Catches a bar that stays below the last sentence, a hidden cursor, a terminal in another mode."""
    with screen(80) as shown:
        before = termios.tcgetattr(shown.slave)
        at_work = lambda frame: any(line.startswith("finetune[iter 0]") for line in frame)  # noqa: E731
        assert shown.run(command(tiny, half_done, INTERRUPTED), environment(), tmp_path, at_work) == 130, shown.lines
        record(shown, tmp_path / "interrupted-80.txt")
        assert shown.lines[-2:] == [
            "spinloop: interrupted; finished steps are in the store, and the same command",
            "goes on from there.",
        ]
        assert not [line for line in shown.lines if "━" in line or line.startswith("next: ")]
        assert termios.tcgetattr(shown.slave) == before and b"\x1b[?25l" not in shown.raw


def test_command_that_fails_while_it_shows_progress(tmp_path) -> None:
    """Catches a bar that stays below the error."""
    rows = "".join(f'{{"prompt": "p {i}", "response": "{random.random()}"}}\n' for i in range(20_000))
    packed = gzip.compress(rows.encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with screen(80) as shown:
        words = [sys.executable, "-m", "flows.cli", "data", "cut.jsonl.gz"]
        assert shown.run(words, environment(), tmp_path) != 0
        assert any("rows" in line for frame in shown.frames for line in frame if "━" in line), shown.frames
        at = next(i for i, line in enumerate(shown.lines) if line.startswith("spinloop:"))
        assert "cut.jsonl.gz" in "".join(shown.lines[at:]) and not any("━" in line for line in shown.lines)


@pytest.mark.parametrize("columns", [80, pytest.param(140, marks=pytest.mark.full)])
def test_recording_of_a_run(server, tiny, half_done, tmp_path, columns: int) -> None:
    """Catches lines that wrap, what is left of the view behind a step, steps that are missing or there twice, a view
    that never says what is at work, how far it is and what comes next, and a table wider than the terminal."""
    with screen(columns) as shown:
        assert shown.run(command(tiny, half_done, SETTINGS[columns]), environment(), tmp_path) == 0, shown.lines
        text = record(shown, tmp_path / f"run-{columns}.txt")
        assert shown.widest() <= columns
        steps = [found for line in shown.lines if (found := STEP.fullmatch(line))]
        ledger = read_steps(half_done / "spinloop-store-v1" / "latest" / "steps.json")
        assert sorted((found[1].strip(), found[2]) for found in steps) == sorted((e.state, e.title) for e in ledger)
        assert not [line for line in shown.lines if "━" in line or line.startswith("next: ")]
        assert re.search(r"━ +\d+ of \d+ (steps|prompts)", text) and "/s" in text
        assert re.search(r"(?m)^next: (evaluate\[θ_1\], gate\[iter 0\]|gate\[iter 0\]|report)", text)
