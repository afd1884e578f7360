"""The heads of the tables of a page, for tests of every page."""

from __future__ import annotations

import re

HEAD = re.compile(r"<th scope=\"col\"(?: title=\"([^\"]*)\")?>([^<]*)</th>")


def without_tooltip(html: str) -> list[str]:
    """Heads of columns without a name or a tooltip, and those that the list below their table does not have."""
    bad = []
    for table in html.split("<table")[1:]:
        listed = re.findall(r"<dt>([^<]*)</dt><dd>\S", table.partition("</details>")[0])
        heads = HEAD.findall(table)
        assert heads, "a table without heads"
        bad += [head for text, head in heads if not head or not text.strip() or head not in listed]
    return bad
