"""What a terminal shows of steps at work: drawn on a real pty, read back with a terminal emulator."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("pyte")

from flows.live import LiveView, collapsed, put_away, view
from flows.streams import COMPLAINT, WholeLines
from tasks.runner.progress import Progress
from tests.flows.screen import Screen, screen

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def event(label: str, done: int, total: int, unit: str = "steps", **figures: float) -> dict:
    """An event of `Job.progress`."""
    return {"label": label, "done": done, "total": total, "unit": unit, "figures": figures}


@contextmanager
def terminal(columns: int, monkeypatch, rows: int = 20) -> Iterator[tuple[Screen, Callable[..., LiveView]]]:
    """A screen that is this process's standard error, and what makes a view on it."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    with screen(columns, rows) as shown, open(os.dup(shown.slave), "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", WholeLines(stream))

        def made(ahead=list) -> LiveView:
            one = view(ahead)
            assert one is not None
            return one

        yield shown, made
        put_away()


def seen(shown: Screen, wanted: str) -> list[str]:
    """The screen's lines as soon as one has `wanted`; fails after 5 s."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        shown.read()
        if any(wanted in line for line in shown.lines):
            return shown.lines
        time.sleep(0.05)
    pytest.fail(f"no {wanted!r} in {shown.lines}")


@pytest.mark.parametrize("columns", [40, 80, 140])
def test_step_at_work_is_shown_and_gone_when_it_ends(columns: int, monkeypatch) -> None:
    """Catches a view without figures or what comes next, lines wider than the terminal, and one that stays behind."""
    with terminal(columns, monkeypatch) as (shown, made):
        progress = Progress(made(lambda: ["finetune[iter 0]", "evaluate[θ_1]", "gate[iter 0]"]))
        progress.step("ran     gather[iter 0] 2df1d7", 0.4)
        progress.step(
            "        Of the training pairs 0.0 % are identical, and in 71.7 % the opponent is preferred.", None
        )
        with progress.at_work("finetune[iter 0]", ""):
            progress("finetune[iter 0]", event("training", 1, 40))
            seen(shown, "1 of 40 steps")
            time.sleep(0.3)
            progress("finetune[iter 0]", event("training", 12, 40, **{"tokens/s": 1234.0, "loss": 0.52}))
            lines = seen(shown, "12 of 40 steps")
            assert "next: evaluate[θ_1], gate[iter 0]" in lines
            assert any(line.startswith("finetune[iter 0]  training") for line in lines)
            assert any("━" in line and "…" not in line for line in lines)
            if columns > 40:
                bar = next(line for line in lines if "12 of 40" in line)
                assert "left" in bar and "1,234 tokens/s" in bar
        progress.close()
        shown.read()
        assert shown.widest() <= columns
        text = " ".join(" ".join(shown.lines).split())
        assert text == (
            "ran gather[iter 0] 2df1d7 0.4 s Of the training pairs 0.0 % are identical, and in 71.7 % the opponent is "
            "preferred."
        )
        hanging = [line for line in shown.lines[1:] if not line.startswith("        ")]
        assert not hanging, "a wrapped line does not stand beside its first word"


def test_failed_step_resized_terminal_and_what_others_write(monkeypatch) -> None:
    """Catches a view that stays when its step fails, lines of others in the midst of it, a narrow terminal that breaks
    it, and a standard error that is still diverted when it is over."""
    with terminal(100, monkeypatch) as (shown, made):
        before, progress = sys.stderr.stream, Progress(made(lambda: ["report"]))
        with pytest.raises(ValueError), progress.at_work("sft[θ_0]", ""):
            progress("sft[θ_0]", event("sft", 2, 4))
            seen(shown, "2 of 4 steps")
            print("somebody else's line", file=sys.stderr)
            shown.resize(40, 20)
            progress("sft[θ_0]", event("sft", 3, 4))
            seen(shown, "3 of 4 steps")
            assert any(line == "somebody else's line" for line in shown.lines)
            raise ValueError
        progress.step("note: after it", None)
        shown.read()
        assert shown.lines[-1] == "note: after it"
        assert not any("3 of 4" in line for line in shown.lines)
        assert sys.stderr.stream is before


def test_complaint_of_a_lost_server_is_still_one_note(monkeypatch) -> None:
    """Catches a view that takes Prefect's words away from the stream that knows them."""
    with terminal(80, monkeypatch) as (shown, made):
        one = made()
        one.begin("sft[θ_0]")
        try:
            raise ConnectionError("no server")
        except ConnectionError:
            sys.stderr.write(COMPLAINT)
            sys.stderr.write("no server")
        lines = seen(shown, "note: logs of this run")
        assert not any("Error logging" in line or "no server" in line for line in lines)
        one.end("sft[θ_0]")


def test_steps_on_a_pool_and_many_at_once(monkeypatch) -> None:
    """Catches a step on a pool that shows nothing, shards that wait for a process shown as at work, and a view higher
    than the terminal."""
    with terminal(80, monkeypatch, rows=12) as (shown, made):
        one = made(lambda: [f"generate[iter 0, shard {n}/9]" for n in range(1, 10)] + ["gather[iter 0]"])
        for n in range(1, 10):
            one.begin(f"generate[iter 0, shard {n}/9]")
        one.draw("generate[iter 0, shard 3/9]", event("generate", 2, 6, "prompts"))
        lines = seen(shown, "2 of 6 prompts")
        assert sum(line.startswith("generate[") for line in lines) == 1
        assert lines[-1] == "next: gather[iter 0]"
        for n in range(1, 10):
            one.end(f"generate[iter 0, shard {n}/9]")
            one.begin(f"score[iter {n}]", "spin-gpu")
        lines = seen(shown, "and 5 more at work")
        assert [line for line in lines if line.startswith("score")] == [
            f"score[iter {n}]  on spin-gpu" for n in range(1, 5)
        ]
        one.close()
        shown.read()
        assert shown.lines == []
        put_away()
        one.begin("a thread that ends late")
        shown.read()
        assert shown.lines == []
    assert collapsed("generate[iter 0, shard 3/9]") == "generate[iter 0]"


def test_no_colour_and_terminals_that_only_print(monkeypatch) -> None:
    """Catches colour in spite of NO_COLOR, and a moving view where the cursor cannot move or nobody looks."""
    for name, value, coloured in (("TERM", "xterm-256color", True), ("NO_COLOR", "1", False)):
        with terminal(80, monkeypatch) as (shown, made):
            monkeypatch.setenv(name, value)
            made().line("ran     tokenize b9b73f  1.0 s")
            made().line("        dim beside what it is about")
            shown.read()
            assert bool(COLOUR.search(shown.raw.decode())) is coloured
            assert shown.lines == ["ran     tokenize b9b73f  1.0 s", "        dim beside what it is about"]
            monkeypatch.setenv("TERM", "dumb")
            assert view() is None
    monkeypatch.setattr(sys, "stderr", WholeLines(open(os.devnull, "w")))  # noqa: SIM115
    assert view() is None


def test_cursor_is_never_hidden(monkeypatch) -> None:
    """Catches a shell without a cursor after `kill -9`."""
    with terminal(80, monkeypatch) as (shown, made):
        made().begin("sft[θ_0]")
        seen(shown, "sft[θ_0]")
        assert b"\x1b[?25l" not in shown.raw
