"""README's picture: the first screen of a run's report as docs/report.svg.

`make report-picture` runs the demo (what the store has is not run again) and draws it from the report's own page: its
sentences, tiles and first charts, with its colours for light and dark. Not a screenshot: no browser is asked, and a
run whose report is the same gives the same bytes. tests/docs/test_picture.py says when it is out of date.
"""

from __future__ import annotations

import argparse
import html
import re
import textwrap
from pathlib import Path

from spin_core.stages import report

PICTURE = Path(__file__).parents[2] / "docs" / "report.svg"
WIDTH, MARGIN, GAP = 1080, 28, 26
CHARTS = (
    "Held-out answers that loop",
    "NLL per token of held-out real answers (lower is better)",
    "Margin on held-out pairs",
    "Training loss",
    "Accuracy: real answer rewarded above the generated one",
    "Log-probability of real and generated answers",
)
LINES = (("kicker", 13, 150, "soft"), ("h1", 26, 60, "ink"), ("verdict", 18, 112, "ink"), ("decision", 15, 132, "ink"))
"""What stands above the tiles: class (or element), size in px, characters to a line, colour."""


def picture(page: str) -> str:
    """An SVG of the first screen of `page`, a report.html. Raises ValueError where the page lacks a part of it."""
    drawn, y = [], float(MARGIN)
    for name, size, columns, colour in LINES:
        for line in textwrap.wrap(_text(page, name), columns):
            y += size * 1.35
            weight = ' font-weight="600"' if name == "h1" else ""
            drawn.append(_line(MARGIN, y, size, colour, line, weight))
        y += 6
    first = page.partition('<ul class="tiles">')[2].partition("</ul>")[0]
    tiles = re.findall(r"<li><span>(.*?)</span><strong>(.*?)</strong><small>(.*?)</small></li>", first)
    width = (WIDTH - 2 * MARGIN - GAP * (len(tiles) - 1)) / max(1, len(tiles))
    y += 8
    for i, (model, value, what) in enumerate(tiles):
        x = MARGIN + i * (width + GAP)
        drawn.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="100" rx="8" fill="var(--card)"/>')
        unit = textwrap.wrap(what, int(width / 8.5))[:2]
        small = [(model, 13, 24, "soft"), (value, 26, 52, "ink")]
        small += [(line, 13, 73 + 16 * k, "soft") for k, line in enumerate(unit)]
        drawn += [_line(x + 14, y + down, size, colour, html.unescape(t)) for t, size, down, colour in small]
    y += 100 + GAP
    drawn_there = re.findall(r"<figcaption>(.*?)</figcaption>\s*(<svg.*?</svg>)", page, re.DOTALL)
    charts = {html.unescape(title): svg for title, svg in drawn_there}
    if lacking := [title for title in CHARTS if title not in charts]:
        raise ValueError(f"the report has no chart {lacking[0]!r}; it has {', '.join(charts)}")
    across = (WIDTH - 2 * MARGIN - 2 * GAP) / 3
    for i, title in enumerate(CHARTS):
        wide, tall = re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', charts[title])[0]
        high, x = across * float(tall) / float(wide), MARGIN + i % 3 * (across + GAP)
        titles = textwrap.wrap(title, 46)
        drawn += [_line(x, y + 14 + 16 * k, 13, "ink", line, ' font-weight="600"') for k, line in enumerate(titles)]
        place = f'<svg x="{x:.0f}" y="{y + 38:.0f}" width="{across:.0f}" height="{high:.0f}"'
        drawn.append(charts[title].replace("<svg", place, 1))
        y += (high + 38 + GAP) if i % 3 == 2 else 0
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{WIDTH}" '
        f'height="{y:.0f}" viewBox="0 0 {WIDTH} {y:.0f}" data-report-version="{report.VERSION}">\n'
        f"<title>{html.escape(_text(page, 'verdict'))}</title>\n<style>\n{_colours(page)}\n"
        "text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif !important; }\n"
        f'</style>\n<rect width="{WIDTH}" height="{y:.0f}" fill="var(--paper)"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _text(page: str, name: str) -> str:
    """The text of the first paragraph of a class, or of the first element of that name."""
    part = re.search(rf'<(?:p class="{name}"|{name})>(.*?)</(?:p|{name})>', page, re.DOTALL)
    if part is None and name != "decision":  # of a run without a gate
        raise ValueError(f"the page has no {name}; give the report.html of a run")
    return html.unescape(" ".join(re.sub(r"<[^>]*>", "", part[1] if part else "").split()))


def _colours(page: str) -> str:
    """The rules of the page's style that name its colours, for light and dark."""
    rules = re.search(r":root \{.*?(?=\n\* \{)", page, re.DOTALL)
    if rules is None:
        raise ValueError("the page has no colours; give the report.html of a run")
    return rules[0].strip()


def _line(x: float, y: float, size: int, colour: str, text: str, more: str = "") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="var(--{colour})"{more}>{html.escape(text)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path, help="a run's report.html")
    parser.add_argument("--to", type=Path, default=PICTURE)
    args = parser.parse_args()
    args.to.write_text(picture(args.page.read_text(encoding="utf-8")), encoding="utf-8")
    print(args.to)


if __name__ == "__main__":
    main()
