"""Figures, settings and text from outside as people read them: on a page, in Markdown, in a terminal.

Is not: a layout. Which figures stand where is the business of `spin_core.report`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence

NONE = "–"
BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # could show text in another order
MARKUP = re.compile(r"[\\`*\[\]|#~$]|(?<!\w)_|_(?!\w)")  # θ_0 stays: an underscore inside a word is no markup
ALL_MARKUP = re.compile(r"[\\`*_\[\](){}|#~$!^]")


def plain(text: object, limit: int) -> str:
    """Text that any file and screen takes: no control, direction-override or surrogate characters; `limit` characters
    and a count of the rest."""
    raw = str(text)
    cut = raw[:limit]
    shown = "".join(
        "\ufffd" if (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") or c in BIDI else c for c in cut
    )
    return shown if len(raw) <= limit else f"{shown}… ({len(raw) - limit:,} more characters)"


def plain_line(text: object, limit: int) -> str:
    """`plain` text on one line."""
    return " ".join(plain(text, limit).split())


def short(text: object) -> str:
    """A label on one line, at most 48 characters."""
    line = plain_line(str(text)[:200], 200)
    return line if len(line) <= 48 else line[:47] + "…"


def show(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """A figure for a person: true minus sign, "–" for None, no "−0.000"."""
    if value is None:
        return NONE
    text = f"{value:{'+' if signed else ''}.{digits}f}" if abs(value) < 1e6 else f"{value:.2e}"
    if float(text) == 0:
        text = f"{0:.{digits}f}"
    return text.replace("-", "−")


def percent(share: float | None) -> str:
    """A share as per cent with one digit; a share that is not zero never reads as zero."""
    if share is None:
        return NONE
    return "< 0.1 %" if 0 < share < 0.0005 else f"{share * 100:.1f} %"


def bounds(low: float | None, high: float | None, digits: int = 3, signed: bool = False) -> str:
    """`0.630 to 0.689`, or nothing where a bound is unknown."""
    if low is None or high is None:
        return ""
    return f"{show(low, digits, signed)} to {show(high, digits, signed)}"


def share_bounds(low: float | None, high: float | None) -> str:
    """`63.0 to 68.9`, in per cent and within 0 and 100, or nothing where a bound is unknown."""
    return "" if low is None or high is None else f"{100 * max(0, low):.1f} to {100 * min(1, high):.1f}"


def count(value: float | None) -> str:
    """12,345, or a dash."""
    return NONE if value is None else f"{value:,.0f}"


def plural(number: int, noun: str) -> str:
    """1 row, 1,200 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def ran_text(ran: int, cached: int) -> str:
    """1 step ran, 34 were cached."""
    return f"{plural(ran, 'step')} ran, {cached:,} {'was' if cached == 1 else 'were'} cached"


def time_text(seconds: float | None) -> str:
    """2.5 s, 20 min 40 s, 1 h 21 min."""
    if seconds is None:
        return NONE
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def hours_text(hours: float) -> str:
    """Hours with two digits that count; what is not zero never reads as zero."""
    return "< 0.01" if 0 < hours < 0.005 else f"{hours:,.2f}" if hours < 100 else f"{hours:,.0f}"


def bytes_text(count: int) -> str:
    """1.25 GB; 0.00 kB for none."""
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
    unit, name = next((one for one in units if count >= one[0]), (1e3, "kB"))
    return f"{count / unit:,.2f} {name}"


def count_text(number: float) -> str:
    """812, 12.3 k, 4.5 M, 1.2 G."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= size:
            return f"{number / (1e3 if unit == ' k' else size):.1f}{unit}"
    return f"{number:,.0f}"


def setting_text(value: object) -> str:
    """A setting's value as a profile writes it, on one line, cut."""
    if isinstance(value, str):
        return plain(" ".join(value.split()), 120) or '""'
    if isinstance(value, float):
        return f"{value:g}"
    return plain(json.dumps(value, ensure_ascii=False, default=str), 120) if value is not None else "none"


def escape_markdown(text: object, limit: int, markup: re.Pattern[str] = MARKUP) -> str:
    """One line of Markdown that shows `text` as it is: no markup, HTML or table borders of its own. MARKUP leaves it
    readable in a terminal; ALL_MARKUP is for pages of which others wrote the renderer."""
    line = plain_line(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return markup.sub(r"\\\g<0>", line)


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, titles first, columns padded so that it reads in a terminal too; figures to the right. Every
    text must be Markdown already."""
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(lines[0]))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    drawn = [
        [cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [drawn[0], rule, *drawn[1:]])
