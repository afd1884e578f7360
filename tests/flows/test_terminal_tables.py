"""Results on a terminal: tables of its width, colour; and the plain text where nobody looks."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("pyte")

from flows.cli.terminal import print_error, print_markdown, print_states
from flows.streams import WholeLines
from spin_core.analysis.format import markdown_table
from tests.flows.screen import Screen, screen

FIGURES = [[f"{row}.{column} (0.{column}00–0.{column}99)" for column in range(1, 9)] for row in range(3)]
TABLE = [["model", *(f"figure {column}" for column in range(1, 9))]] + [
    [f"θ_{row}", *figures] for row, figures in enumerate(FIGURES)
]
STATES = [
    ("cached", "reformat", "71674b 7.9 s saved"),
    (
        "would run",
        "generate[iter 0]",
        "8 of 8 shards would run, 72 of 72 rows: generate.temperature was 1.0 and is 0.5",
    ),
    ("would run", "gather[iter 0]", "reads what generate[iter 0, shard 1/8] will write"),
]


@contextmanager
def terminal(columns: int, monkeypatch) -> Iterator[Screen]:
    """A screen that is standard output and standard error of this process."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with screen(columns, 60) as shown, open(os.dup(shown.slave), "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", WholeLines(stream))
        monkeypatch.setattr(sys, "stderr", WholeLines(stream))
        yield shown


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_wide_table_is_cut_into_parts_and_keeps_every_figure(columns: int, monkeypatch) -> None:
    """Catches rows that the terminal wraps, a part without its models' names, and a figure that is cut or in another
    model's row."""
    with terminal(columns, monkeypatch) as shown:
        print_markdown(f"Before it.\n\n{markdown_table(TABLE)}\n\n- a note that is longer than forty columns are.")
        shown.read()
        assert shown.widest() <= columns
        for row, figures in enumerate(FIGURES):
            own = [line for line in shown.lines if line.startswith(f"θ_{row} ")]
            assert [re.sub(" +", " ", part) for line in own for part in line[4:].strip().split("  ") if part] == figures
        heads = [line for line in shown.lines if line.startswith("model ")]
        assert sum(line.count("figure") for line in heads) == 8 and (len(heads) > 1) is (columns < 200)
        assert shown.lines[0] == "Before it." and not any("|" in line for line in shown.lines)
        if columns == 40:
            assert shown.lines[-1].startswith("  "), "a wrapped note stands beside its dash"


@pytest.mark.parametrize("columns", [40, 80])
def test_states_are_coloured_and_wrapped_beside_their_names(columns: int, monkeypatch) -> None:
    """Catches a ledger that the terminal wraps, a word that is lost, and no colour."""
    with terminal(columns, monkeypatch) as shown:
        print_states(STATES, 9, 0)
        shown.read()
        assert shown.widest() <= columns
        said = " ".join(" ".join(shown.lines).split())
        assert all(word in said for state in STATES for word in " ".join(state).split())
        assert b"\x1b[36mcached" in shown.raw and b"\x1b[33mwould run" in shown.raw
        assert all(line.startswith((*{one[0] for one in STATES}, " " * 11)) for line in shown.lines)


def test_error_is_wrapped_between_words(monkeypatch) -> None:
    """Catches a word that is cut at the edge."""
    with terminal(40, monkeypatch) as shown:
        print_error("finetune.betta: unknown field; did you mean beta? " + "word " * 9)
        shown.read()
        assert shown.widest() <= 40 and shown.lines[0].startswith("spinloop: finetune.betta: unknown")
        assert {one for line in shown.lines[2:] for one in line.split()} == {"word"}


def test_plain_text_where_nobody_looks(capsys, monkeypatch) -> None:
    """Catches colour or another text in a pipe, a file, and on a terminal that only prints."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_states(STATES, 9, 0)
    print_markdown(markdown_table(TABLE))
    piped = capsys.readouterr().out
    assert "\x1b" not in piped and piped.endswith(markdown_table(TABLE) + "\n")
    assert piped.splitlines()[0] == "cached     reformat          71674b 7.9 s saved"
    with terminal(40, monkeypatch) as shown:
        monkeypatch.setenv("TERM", "dumb")
        print_states(STATES, 9, 0)
        shown.read()
        assert shown.raw.decode().replace("\r\n", "\n") == "\n".join(piped.splitlines()[:3]) + "\n"
