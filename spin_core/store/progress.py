"""Progress of what takes long in a store: packing, sending, fetching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SHOWN_FROM = 32 << 20  # bytes: less is done before a bar is drawn

Report = Callable[[str, dict[str, Any]], None]
"""Is called with (title, event) of what takes long; events as those of `Job.progress`."""


@contextmanager
def bar(report: Report, title: str, label: str, total: int) -> Iterator[Callable[..., None]]:
    """Progress in MB, for what takes long enough to be watched; yields what advances it by bytes, of `total`."""
    done = 0

    def advance(count: int, **more: bool) -> None:
        nonlocal done
        done += count
        if total >= SHOWN_FROM:
            mega = {"done": done // 1_000_000, "total": total // 1_000_000}
            report(title, {"label": label, "unit": "MB", "figures": {}, **mega, **more})

    advance(0)
    try:
        yield advance
    finally:
        advance(0, closed=True)
