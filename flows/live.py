"""What a terminal shows of work that is under way: finished steps scroll above, and at the bottom the steps at work
(bar, n of N, rate, time left) and what comes next. rich draws; the events are those of `Job.progress`.

Is not: what a pipe, a file or a worker's log gets, which is the lines alone (tasks/runner/progress.py).
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.progress import Progress, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.streams import WholeLines
from spin_core.errors import printable

PER_SECOND = 5
ONE_LINE = 110  # columns from which title and bar share a line
LONGEST_BAR, SHORTEST_BAR = 40, 8
HANGING = 8  # `ran     `, `Cached  `: what follows is wrapped beside it
STYLES = {"ran": "green", "Cached": "cyan", "note:": "yellow", "stops": "yellow", "decoder": "dim", "": "dim"}

_views: weakref.WeakSet[LiveView] = weakref.WeakSet()


def view(ahead: Callable[[], Sequence[str]] = list) -> LiveView | None:
    """A view on standard error; None where that is no terminal, or one that cannot move its cursor (TERM=dumb).
    `ahead` gives what comes next."""
    stream = sys.stderr
    if not isinstance(stream, WholeLines) or not stream.isatty() or is_dumb():
        return None
    return LiveView(stream, ahead)


def is_dumb() -> bool:
    """Whether the terminal says that it can do nothing but print lines."""
    return os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")


def console_of(stream: TextIO) -> Console:
    """rich's console on a terminal. With NO_COLOR it has no colour, bold or dim text either."""
    plain = bool(os.environ.get("NO_COLOR"))
    return _Console(file=stream, force_terminal=True, color_system=None if plain else "auto", highlight=False)


class _Console(Console):
    """As large as the terminal that it writes to. Does not hide the cursor: a process that is killed could not show it
    again."""

    @property  # type: ignore[misc]  # rich's can be set, which nothing does here
    def size(self) -> ConsoleDimensions:
        with suppress(OSError, ValueError):
            there = os.get_terminal_size(self.file.fileno())
            if all(there):
                return ConsoleDimensions(*there)
        return super().size

    def show_cursor(self, show: bool = True) -> bool:
        return False


class LiveView:
    """Is there while something is at work, and takes its lines away when nothing is. Called from the threads of the
    steps. What others write to standard error meanwhile stands above it."""

    def __init__(self, stream: WholeLines, ahead: Callable[[], Sequence[str]] = list):
        self._stream, self._ahead = stream, ahead
        self._terminal = stream.stream
        self._titles: dict[str, TaskID] = {}
        self._begun: set[str] = set()
        self._changing = threading.RLock()  # of what is at work; the thread that draws never takes it
        self._up = self._over = False
        self._console = console_of(self._terminal)
        self._tasks = Progress(console=self._console)  # what rich knows of their speed; `_live` draws them
        self._live = Live(
            console=self._console, get_renderable=self._drawn, transient=True, refresh_per_second=PER_SECOND,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        _views.add(self)

    def begin(self, title: str, where: str = "") -> None:
        """A step is at work, on the pool `where` or, if that is empty, here, where it may still wait for a process."""
        with self._changing:
            self._begun.add(title)
            self._task(title, where and f"on {where}")

    def draw(self, title: str, event: dict) -> None:
        """An event of `Job.progress` or of a wait for another run; of a title that was not begun it is all there is."""
        with self._changing:
            if "waiting" in event:
                self._tasks.update(self._task(title, ""), label=f"waits for {event['holder']}")
                return
            if event.get("closed") and title not in self._begun:
                self._drop(title)
                return
            name, total = self._task(title, ""), event["total"] or None
            fields = next(task.fields for task in self._tasks.tasks if task.id == name)
            if fields["label"] != event["label"]:
                self._tasks.reset(name, total=total, label=event["label"], unit=event["unit"], figures={})
            self._tasks.update(
                name, completed=event["done"], total=total, figures=event["figures"] or fields["figures"]
            )

    def end(self, title: str) -> None:
        """A step is no longer at work, however it ended."""
        with self._changing:
            self._begun.discard(title)
            self._drop(title)

    def line(self, text: str) -> None:
        """A line above what is at work, wrapped between words."""
        head, rest = text[:HANGING].rstrip(), text[HANGING:]
        if head not in STYLES or text[HANGING - 1 : HANGING] != " ":
            head = text.partition(" ")[0]
            self._console.print(Text(printable(text, "\n"), STYLES.get(head, "") if head else ""))
            return
        grid = Table.grid(padding=0)
        grid.add_column(width=HANGING)
        grid.add_column(overflow="fold")
        grid.add_row(Text(head, STYLES[head]), Text(printable(rest, "\n"), "" if head in ("ran", "Cached") else "dim"))
        self._console.print(grid)

    def close(self) -> None:
        """Take the view away; what begins after this brings it again."""
        with self._changing:
            for title in list(self._titles):
                self._drop(title)

    def leave(self) -> None:
        """Take the view away for ever."""
        with self._changing:
            self._over = True
            self.close()

    def _task(self, title: str, label: str) -> TaskID:
        if title not in self._titles:
            self._titles[title] = self._tasks.add_task(title, total=None, label=label, unit="", figures={})
            if not self._up and not self._over:
                self._up = True
                self._stream.stream = cast(TextIO, FileProxy(self._console, self._terminal))
                self._live.start()
        return self._titles[title]

    def _drop(self, title: str) -> None:
        if title in self._titles:
            self._tasks.remove_task(self._titles.pop(title))
        if self._up and not self._titles:
            self._up = False
            self._stream.stream.flush()
            self._live.stop()
            self._stream.stream = self._terminal

    def _drawn(self) -> RenderableType:
        """The lines at the bottom, for the width and height that the terminal has now."""
        return Group(*self._lines(*self._console.size))

    def _lines(self, width: int, height: int) -> Iterator[RenderableType]:
        tasks = self._tasks.tasks
        shown = [task for task in tasks if task.fields["label"]] or tasks[:1]
        room = max(1, (height - 3) // 2)
        for task in shown[:room]:
            yield from _rows(task, width)
        if len(shown) > room:
            yield _cut(f"and {len(shown) - room} more at work")
        at_work = {collapsed(task.description) for task in shown}
        following = [title for title in dict.fromkeys(map(collapsed, self._ahead())) if title not in at_work]
        if following:
            yield _cut(f"next: {', '.join(following[:8])}")


def put_away() -> None:
    """Take away every view, for good: the process is about to end, or to say why it does, and threads may still be at
    work."""
    for one in list(_views):
        one.leave()


def collapsed(title: str) -> str:
    """`generate[iter 0]` of `generate[iter 0, shard 3/8]`."""
    head, comma, _ = title.partition(", shard")
    return head + "]" if comma else title


def _rows(task: Task, width: int) -> Iterator[RenderableType]:
    label = printable(task.fields["label"]) or str(timedelta(seconds=int(task.elapsed or 0)))
    head = Text(task.description, "bold", no_wrap=True, overflow="ellipsis")
    if not task.description.startswith(label):  # `finetune[iter 0]  finetune`
        head.append(f"  {label}", "not bold dim")
    if not task.fields["unit"]:
        yield head
        return
    indent = head.cell_len if width >= ONE_LINE else 0
    facts, room = _facts(task), width - indent - 2 - SHORTEST_BAR - 2
    while len(facts) > 1 and len("  ".join(facts)) > room:
        facts.pop()
    text = "  ".join(facts)
    bar = max(SHORTEST_BAR, min(LONGEST_BAR, width - indent - len(text) - 5))
    grid = Table.grid(padding=(0, 2, 0, 0))
    drawn = ProgressBar(total=task.total, completed=task.completed, width=bar, pulse=task.total is None)
    line = (drawn, Text(text, no_wrap=True, overflow="ellipsis"))
    if width >= ONE_LINE:
        grid.add_row(head, *line)
    else:
        yield head
        grid.add_row("", *line)
    yield grid


def _facts(task: Task) -> list[str]:
    """What stands beside the bar, the most wanted first."""
    unit, figures = task.fields["unit"], dict(task.fields["figures"])
    done = f"{task.completed:,.0f} of {task.total:,.0f} {unit}" if task.total else f"{task.completed:,.0f} {unit}"
    left = task.time_remaining
    rates = [f"{_short(figures.pop(name))} {name}" for name in list(figures) if name.endswith("/s")]
    if not rates and task.speed:
        rates = [f"{_short(task.speed)} {unit}/s"]
    ends = [f"{timedelta(seconds=round(left))} left"] if left and task.total else []
    return [done, *ends, *rates, *(f"{name} {_short(value)}" for name, value in figures.items())]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cut(text: str) -> Any:
    return Text(text, "dim", no_wrap=True, overflow="ellipsis")
