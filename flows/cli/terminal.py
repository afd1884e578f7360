"""Results on a terminal: colour, and tables that fit its width. A pipe, a file and a terminal that can do nothing but
print lines (TERM=dumb) get the plain text."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.live import console_of, is_dumb
from flows.streams import print_escaped
from spin_core.errors import printable

STYLES = {"ok": "green", "cached": "cyan", "would run": "yellow", "missing": "bold red", "-": "dim"}
GAP = 2
NARROW = 24  # columns of text below which it goes under its name, not beside it


def print_states(lines: Sequence[tuple[str, str, str]], state: int, name: int, gap: str = "  ") -> None:
    """One line each of (state, name, text), with columns of at least `state` and `name` characters."""
    console, name = _console(sys.stdout), max([name, *(len(line[1]) for line in lines)])
    if console is None:
        for one, what, text in lines:
            print_escaped(f"{one:<{state}}{gap}{what:<{name}}{gap}{text}")
        return
    beside = console.width - state - name - 2 * GAP >= NARROW
    grid = Table.grid(padding=(0, GAP, 0, 0))
    grid.add_column(width=state)
    grid.add_column(overflow="fold", width=name if beside else None)
    grid.add_column(overflow="fold")
    for one, what, text in lines:
        styled = Text(printable(one), STYLES.get(one, "")), Text(printable(what))
        if beside:
            grid.add_row(*styled, Text(printable(text)))
        else:
            grid.add_row(*styled)
            grid.add_row("", Text(printable(text), "dim"))
    console.print(grid)


def print_markdown(text: str, file: TextIO | None = None) -> None:
    """Text with tables of markdown in it, as reports have them; a terminal gets them as tables, a wide one in parts
    that each begin with its first column."""
    stream = file or sys.stdout
    console = _console(stream)
    if console is None:
        print_escaped(text, stream)
        return
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("| ")):
        if is_table:
            for i, part in enumerate(_tables(list(lines), console.width)):
                console.print(*[""] * bool(i), part, sep="\n")
        else:
            for line in lines:
                console.print(_wrapped("- ", line[2:]) if line.startswith("- ") else Text(printable(line, "\t")))


def print_error(text: str) -> None:
    """`spinloop: …` on standard error, what a command that failed says."""
    console = _console(sys.stderr)
    if console is None:
        print(f"spinloop: {text}", file=sys.stderr)
    else:
        console.print(Text.assemble(("spinloop: ", "bold red"), text))


def _wrapped(mark: str, text: str) -> Table:
    """A line that is wrapped beside its mark."""
    grid = Table.grid(padding=0)
    grid.add_column(width=len(mark))
    grid.add_column(overflow="fold")
    grid.add_row(mark, Text(printable(text, "\t")))
    return grid


def _console(stream: TextIO) -> Console | None:
    return console_of(stream) if stream.isatty() and not is_dumb() else None


def _tables(lines: list[str], width: int) -> Iterator[Table]:
    """The table of these lines of markdown, the second of which says how columns are aligned, in parts of at most
    `width` columns."""
    head, rule, *rows = [[cell.strip() for cell in printable(line)[2:-2].split(" | ")] for line in lines]
    longest = [max(map(cell_len, column)) for column in zip(head, *rows, strict=True)]
    for columns in _parts(longest, width):
        table = Table(box=None, padding=(0, GAP, 0, 0), header_style="bold", pad_edge=False)
        for i in columns:
            table.add_column(Text(head[i]), justify="right" if rule[i].endswith(":") else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(row[i]) for i in columns))
        yield table


def _parts(longest: Sequence[int], width: int) -> Iterator[list[int]]:
    """Numbers of the columns of each part: the first, and of the others as many as fit beside it."""
    part, used = [0], longest[0] + GAP
    for i in range(1, len(longest)):
        if len(part) > 1 and used + longest[i] > width:
            yield part
            part, used = [0], longest[0] + GAP
        part.append(i)
        used += longest[i] + GAP
    yield part
