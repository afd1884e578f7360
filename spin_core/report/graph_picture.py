"""A directed graph without cycles as an SVG picture: boxes in rows from top to bottom, curves between them.

Is not: Mermaid, which only one of Prefect's two UIs draws. Bytes depend on the graph alone. Nothing in it has a link, a
script or a style sheet, and colours are for a light and a dark page, because a picture cannot see which one it is on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

HEIGHT, DOWN, ASIDE, MARGIN = 44, 38, 18, 8  # pixels: of a box, between rows, between boxes, at the border
LETTER = 7.2  # pixels of a letter of 13 pixels, of most fonts
SWEEPS = 8
EDGE = "#8a95a6"

Edge = tuple[str, str]


@dataclass(frozen=True)
class Box:
    """Two lines of text; `fill`, `stroke`, `ink` are colours."""

    title: str
    small: str
    fill: str
    stroke: str
    ink: str
    dashed: bool = False


def picture(boxes: Mapping[str, Box], edges: Sequence[Edge]) -> str:
    """The SVG element. `boxes` by name, in an order in which every edge of `edges` goes forward."""
    rows, chains = _rows(boxes, edges)
    letters = max((len(text) for box in boxes.values() for text in (box.title, box.small)), default=0)
    wide = {name: letters * LETTER + 20 if name in boxes else 0.0 for row in rows for name in row}
    x = _places(rows, chains, wide)
    y = {name: MARGIN + i * (HEIGHT + DOWN) for i, row in enumerate(rows) for name in row}
    width = max((x[name] + wide[name] / 2 for name in x), default=0) + MARGIN
    height = len(rows) * (HEIGHT + DOWN) - DOWN * bool(rows) + 2 * MARGIN
    parts = [_curve([(x[name], y[name]) for name in chain]) for chain in chains]
    parts += [_box(box, x[name] - wide[name] / 2, y[name], wide[name]) for name, box in boxes.items()]
    tip = (
        '<marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{EDGE}"/></marker>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="system-ui, sans-serif" text-anchor="middle">'
        f"<defs>{tip}</defs>{''.join(parts)}</svg>"
    )


def _rows(boxes: Mapping[str, Box], edges: Sequence[Edge]) -> tuple[list[list[str]], list[list[str]]]:
    """The names in each row, and each edge as the names that it passes: of its ends, and of a place of its own in every
    row between them, so that it runs through no box."""
    place = {name: i for i, name in enumerate(boxes)}
    row = dict.fromkeys(boxes, 0)
    for start, end in sorted(edges, key=lambda edge: place[edge[1]]):
        row[end] = max(row[end], row[start] + 1)
    read = {end for _, end in edges}
    for name in boxes:  # what is made of nothing stands just above what is first made of it
        below = [row[end] for start, end in edges if start == name]
        if name not in read and below:
            row[name] = min(below) - 1
    rows: list[list[str]] = [[] for _ in range(max(row.values(), default=-1) + 1)]
    for name in boxes:
        rows[row[name]].append(name)
    chains = []
    for start, end in edges:
        between = [f"{start} {end} {i}" for i in range(row[start] + 1, row[end])]
        for i, name in enumerate(between, row[start] + 1):
            rows[i].append(name)
        chains.append([start, *between, end])
    return rows, chains


def _places(rows: list[list[str]], chains: list[list[str]], wide: Mapping[str, float]) -> dict[str, float]:
    """The middle of every name in its row, in pixels: near the middle of what it is joined to, at a distance from its
    neighbours. Changes the order in `rows`."""
    joined: dict[str, list[str]] = defaultdict(list)
    for chain in chains:
        for a, b in pairwise(chain):
            joined[a].append(b)
            joined[b].append(a)
    x = {name: float(i) for row in rows for i, name in enumerate(row)}
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = {
                name: sum(x[other] for other in joined[name] or [name]) / len(joined[name] or [name]) for name in row
            }
            row.sort(key=lambda name: wanted[name])
            x |= _apart(row, wanted, wide)
    left = min((x[name] - wide[name] / 2 for name in x), default=0)
    return {name: at - left + MARGIN for name, at in x.items()}


def _apart(row: Sequence[str], wanted: Mapping[str, float], wide: Mapping[str, float]) -> dict[str, float]:
    """Places in the order of `row`, with room between them, as far left as right of what is wanted."""
    at: list[float] = []
    for i, name in enumerate(row):
        least = at[-1] + (wide[row[i - 1]] + wide[name]) / 2 + ASIDE if i else wanted[name]
        at.append(max(least, wanted[name]))
    over = sum(place - wanted[name] for place, name in zip(at, row, strict=True)) / max(1, len(row))
    return {name: place - over for place, name in zip(at, row, strict=True)}


def _curve(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    path = f"M{x:.1f} {y + HEIGHT:.1f}"
    for i, (to_x, to_y) in enumerate(rest):
        start = y + HEIGHT
        path += f"C{x:.1f} {start + DOWN / 2:.1f} {to_x:.1f} {to_y - DOWN / 2:.1f} {to_x:.1f} {to_y:.1f}"
        if i < len(rest) - 1:
            path += f"L{to_x:.1f} {to_y + HEIGHT:.1f}"
        x, y = to_x, to_y
    return f'<path d="{path}" fill="none" stroke="{EDGE}" stroke-width="1.3" marker-end="url(#tip)"/>'


def _box(box: Box, x: float, y: float, width: float) -> str:
    dashes = ' stroke-dasharray="4 3"' if box.dashed else ""
    middle = x + width / 2
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT}" rx="5" fill="{box.fill}" '
        f'stroke="{box.stroke}"{dashes}/><text x="{middle:.1f}" y="{y + 19:.1f}" font-size="13" font-weight="600" '
        f'fill="{box.ink}">{escape(box.title)}</text><text x="{middle:.1f}" y="{y + 35:.1f}" font-size="11" '
        f'fill="{box.ink}">{escape(box.small)}</text>'
    )
